//! The two programs of `bpf/ipip.c`: loading them with their constants, and reading back what is attached.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::time::{SystemTime, UNIX_EPOCH};

use aya_obj::Object;
use kernel::KernelError;

use super::bpf::{self, Map, MapShape};
use super::place::Hook;

/// The constants of one attachment: `struct config` of `bpf/ipip.c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Which object file.
    pub build: u64,
    /// Outer source.
    pub local: Ipv4Addr,
    /// Interface index of the underlay.
    pub underlay: u32,
    /// Interface index of the tunnel.
    pub device: u32,
    /// The kernel's driver does the work, the program only filters.
    pub native: bool,
    /// The underlay's `clsact` queueing discipline was made by us. Only noted here.
    pub owns_clsact: bool,
}

/// What outlives a change of the programs.
#[derive(Debug)]
pub struct Maps {
    /// Allowed outer sources.
    pub peers: Map,
    /// One number. Until it changes, programs rely on what they found among the peers.
    pub revision: Map,
    /// One entry, per CPU.
    pub counters: Map,
}

/// `struct counters` of `bpf/ipip.c`, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets encapsulated.
    pub encapsulated: u64,
    /// Packets decapsulated, or in native mode let through.
    pub decapsulated: u64,
    /// Dropped: outer source is no peer.
    pub unknown_source: u64,
    /// Dropped: no peer for the next hop.
    pub no_peer: u64,
    /// Dropped: broken, or an outer fragment.
    pub malformed: u64,
}

/// Programs ready to be attached.
#[derive(Debug)]
pub struct Programs {
    /// For the tunnel's egress.
    pub encap: OwnedFd,
    /// For the underlay's ingress.
    pub decap: OwnedFd,
    /// Their maps.
    pub maps: Maps,
}

/// What is attached somewhere.
#[derive(Debug)]
pub struct Attached {
    /// Its constants.
    pub config: Config,
    /// Its maps.
    pub maps: Maps,
}

/// The ELF reader wants the file at an aligned address.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);
static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/ipip.o")));

const CONFIG: &str = "margay_config";
const PEERS: &str = "margay_peers";
const REVISION: &str = "margay_revision";
/// What programs found among the peers. Each pair of programs has its own, empty at first.
const KNOWN: &str = "margay_known";
const COUNTERS: &str = "margay_counters";

/// Names the object file built into this executable (64-bit FNV-1a of it).
pub fn build() -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    OBJECT.0.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

impl Programs {
    /// Loads both programs. Maps of earlier ones are taken over, with what is in them.
    pub fn load(config: Config, old: Option<Maps>) -> Result<Self, KernelError> {
        let mut object = Object::parse(&OBJECT.0).map_err(|error| unsupported("read the BPF object", error))?;
        let text: HashSet<usize> = HashSet::new();
        let mut maps = Vec::new();
        for (name, map) in &object.maps {
            let shape = MapShape {
                kind: if name == ".rodata" { bpf::ARRAY } else { map.map_type() },
                key_size: map.key_size(),
                value_size: map.value_size(),
                max_entries: map.max_entries(),
                flags: if name == ".rodata" {
                    bpf::READ_ONLY_FOR_PROGRAMS
                } else {
                    map.map_flags()
                },
            };
            maps.push((name.clone(), map.clone(), shape));
        }
        let shape = |wanted: &str| {
            let found = maps.iter().find(|(name, _, _)| name == wanted);
            found
                .map(|(_, _, shape)| *shape)
                .ok_or_else(|| unsupported("read the BPF object", format!("no {wanted}")))
        };
        let constants = config_map(&config, shape(".rodata")?)?;
        let known = create(KNOWN, shape("known")?)?;
        let kept = Maps::create_or_keep(old, shape("peers")?, shape("revision")?, shape("counters")?)?;
        let fds = maps.iter().filter_map(|(name, map, _)| match name.as_str() {
            ".rodata" => Some((name.as_str(), constants.as_raw_fd(), map)),
            "peers" => Some((name.as_str(), kept.peers.as_raw_fd(), map)),
            "revision" => Some((name.as_str(), kept.revision.as_raw_fd(), map)),
            "known" => Some((name.as_str(), known.as_raw_fd(), map)),
            "counters" => Some((name.as_str(), kept.counters.as_raw_fd(), map)),
            _ => None,
        });
        object
            .relocate_maps(fds, &text)
            .map_err(|error| unsupported("relocate the BPF object", error))?;
        object
            .relocate_calls(&text)
            .map_err(|error| unsupported("relocate the BPF object", error))?;
        let load = |name: &str, hook: Hook| {
            let program = object.programs.get(name);
            let function = program.and_then(|program| object.functions.get(&program.function_key()));
            let (Some(program), Some(function)) = (program, function) else {
                return Err(unsupported("read the BPF object", format!("no program {name}")));
            };
            let code: Vec<[u8; 8]> = function.instructions.iter().map(encode).collect();
            bpf::load_classifier(hook.program(), &code, &program.license)
                .map_err(|error| failed(&format!("load BPF program {name}"), &error))
        };
        let (encap, decap) = (load("encap", Hook::Egress)?, load("decap", Hook::Ingress)?);
        // Its neighbours are its peers; but should the underlay vanish and take the other program along, they are here.
        bpf::bind_map(&encap, &kept.peers).map_err(|error| failed("bind the peers to the program", &error))?;
        Ok(Self {
            encap,
            decap,
            maps: kept,
        })
    }
}

impl Attached {
    /// Reads back a program by its number. `None`: it vanished, or is not of a kind that we know.
    pub fn read(program: u32) -> Result<Option<Self>, KernelError> {
        let Some(info) = absent(bpf::program_info(program))? else {
            return Ok(None);
        };
        let (mut config, mut peers, mut revision, mut counters) = (None, None, None, None);
        for id in info.maps {
            let Some(map) = absent(Map::by_id(id))? else {
                return Ok(None);
            };
            match map.name.as_str() {
                CONFIG => {
                    let value = map
                        .lookup(&[0; 4])
                        .map_err(|error| failed("read the program's constants", &error))?;
                    config = value.as_deref().and_then(Config::decode);
                }
                PEERS => peers = Some(map),
                REVISION => revision = Some(map),
                COUNTERS => counters = Some(map),
                _ => {}
            }
        }
        let (Some(config), Some(peers), Some(revision), Some(counters)) = (config, peers, revision, counters) else {
            return Ok(None);
        };
        Ok(Some(Self {
            config,
            maps: Maps {
                peers,
                revision,
                counters,
            },
        }))
    }
}

impl Maps {
    /// Allowed outer sources.
    pub fn peers(&self) -> Result<BTreeSet<Ipv4Addr>, KernelError> {
        let keys = self.peers.keys().map_err(|error| failed("list the peers", &error))?;
        Ok(keys
            .iter()
            .filter_map(|key| <[u8; 4]>::try_from(key.as_slice()).ok())
            .map(Ipv4Addr::from)
            .collect())
    }

    /// Allows an outer source.
    pub fn put_peer(&self, peer: Ipv4Addr) -> Result<(), KernelError> {
        let value = vec![0; self.peers.shape.value_size as usize];
        self.peers
            .update(&peer.octets(), &value)
            .map_err(|error| failed(&format!("allow peer {peer}"), &error))
    }

    /// Forbids an outer source: from now on, nothing from there is let in.
    pub fn remove_peer(&self, peer: Ipv4Addr) -> Result<(), KernelError> {
        self.peers
            .delete(&peer.octets())
            .and_then(|()| renew(&self.revision))
            .map_err(|error| failed(&format!("forget peer {peer}"), &error))
    }

    /// The counters now.
    pub fn counts(&self) -> Result<Counts, KernelError> {
        let sums = self
            .counters
            .sum(0)
            .map_err(|error| failed("read the counters", &error))?;
        let field = |index: usize| sums.get(index).copied().unwrap_or(0);
        Ok(Counts {
            encapsulated: field(0),
            decapsulated: field(1),
            unknown_source: field(2),
            no_peer: field(3),
            malformed: field(4),
        })
    }

    /// Keeps the old maps if their shapes still fit; else makes new ones, and moves the peers.
    fn create_or_keep(
        old: Option<Self>,
        peers: MapShape,
        revision: MapShape,
        counters: MapShape,
    ) -> Result<Self, KernelError> {
        let (known, old) = match old {
            Some(old) => (old.peers()?, (Some(old.peers), Some(old.revision), Some(old.counters))),
            None => (BTreeSet::new(), (None, None, None)),
        };
        let keep = |old: Option<Map>, name: &str, shape: MapShape| match old {
            Some(old) if old.shape == shape => Ok(old),
            _ => create(name, shape),
        };
        let new = Self {
            peers: keep(old.0, PEERS, peers)?,
            revision: keep(old.1, REVISION, revision)?,
            counters: keep(old.2, COUNTERS, counters)?,
        };
        known.into_iter().try_for_each(|peer| new.put_peer(peer))?;
        renew(&new.revision).map_err(|error| failed("renew the revision of the peers", &error))?;
        Ok(new)
    }
}

impl Config {
    const SIZE: usize = 32;

    fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..8].copy_from_slice(&self.build.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.local.octets());
        bytes[12..16].copy_from_slice(&self.underlay.to_ne_bytes());
        bytes[16..20].copy_from_slice(&self.device.to_ne_bytes());
        bytes[20..24].copy_from_slice(&u32::from(self.native).to_ne_bytes());
        bytes[24..28].copy_from_slice(&u32::from(self.owns_clsact).to_ne_bytes());
        bytes
    }

    /// `None`: another layout than ours.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::SIZE] = bytes.try_into().ok()?;
        let word = |at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        Some(Self {
            build: u64::from_ne_bytes(*bytes.first_chunk()?),
            local: word(8).into(),
            underlay: u32::from_ne_bytes(word(12)),
            device: u32::from_ne_bytes(word(16)),
            native: u32::from_ne_bytes(word(20)) != 0,
            owns_clsact: u32::from_ne_bytes(word(24)) != 0,
        })
    }
}

fn create(name: &str, shape: MapShape) -> Result<Map, KernelError> {
    Map::create(name, shape).map_err(|error| failed(&format!("create BPF map {name}"), &error))
}

/// Writes a number that was never there before: the time, so that nobody needs to read the old one, nor to take turns.
fn renew(revision: &Map) -> io::Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let number = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX).max(1);
    revision.update(&[0; 4], &number.to_ne_bytes())
}

fn config_map(config: &Config, shape: MapShape) -> Result<Map, KernelError> {
    let value = config.encode();
    if shape.value_size as usize != value.len() {
        return Err(unsupported(
            "read the BPF object",
            "the layout of its constants is not ours",
        ));
    }
    let fill = || {
        let map = Map::create(CONFIG, shape)?;
        map.update(&[0; 4], &value)?;
        map.freeze()?;
        Ok(map)
    };
    fill().map_err(|error| failed("create BPF map margay_config", &error))
}

fn encode(instruction: &aya_obj::generated::bpf_insn) -> [u8; 8] {
    let [off_low, off_high] = instruction.off.to_ne_bytes();
    let [a, b, c, d] = instruction.imm.to_ne_bytes();
    let (src, dst) = (instruction.src_reg(), instruction.dst_reg());
    let registers = if cfg!(target_endian = "little") {
        src << 4 | dst
    } else {
        dst << 4 | src
    };
    [instruction.code, registers, off_low, off_high, a, b, c, d]
}

fn absent<T>(result: io::Result<T>) -> Result<Option<T>, KernelError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(failed("look at the attached BPF program", &error)),
    }
}

fn failed(what: &str, error: &io::Error) -> KernelError {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => KernelError::Unsupported(format!("BPF: {what}: {error}")),
        errno => KernelError::Refused {
            what: what.into(),
            reason: error.to_string(),
            errno: errno.unwrap_or(0),
        },
    }
}

fn unsupported(what: &str, error: impl std::fmt::Display) -> KernelError {
    KernelError::Unsupported(format!("BPF: {what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_survive_encoding() {
        let config = Config {
            build: build(),
            local: Ipv4Addr::new(10, 0, 0, 1),
            underlay: 7,
            device: 9,
            native: true,
            owns_clsact: false,
        };
        assert_eq!(Config::decode(&config.encode()), Some(config));
        assert_eq!(Config::decode(&config.encode()[1..]), None);
    }
}
