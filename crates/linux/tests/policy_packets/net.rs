//! The world of `proof` as network namespaces: the node, one for each pod and uplink, and sockets that send and capture there.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use policy::evaluate;
use proof::world::{HOST_ADDRESSES, Place, UPLINKS};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::frame::id_of;
use super::support::Ns;

/// Of the node's devices.
const NODE_MAC: [u8; 6] = [0xee; 6];
/// Of everything else.
const OTHER_MAC: [u8; 6] = [0x0a, 0, 0, 0, 0, 1];
/// The mark of packets that the node sends for us. All others of its own are noise.
pub const SENT: u32 = 1;
const LIMIT: Duration = Duration::from_secs(20);
const BUFFER: usize = 64 << 20;

/// The namespaces with their sockets.
pub struct Net {
    pub node: Ns,
    wires: BTreeMap<Place, Wire>,
    host: Host,
    barrier: Barrier,
    _others: Vec<Ns>,
}

/// A device outside the node, where frames are sent and captured.
struct Wire(OwnedFd);

/// Sockets of the node itself, by family: they send, and get what was let in.
struct Host {
    sending: [Socket; 2],
    receiving: Vec<Socket>,
}

/// A second way through as many devices, where nobody drops anything. A processor takes frames in the order in which they came:
/// what is sent at its end comes after all that was sent before.
struct Barrier {
    from: Wire,
    to: Wire,
    _namespaces: [Ns; 2],
}

impl Net {
    pub fn new() -> Self {
        let node = Ns::new();
        for path in ["ipv4/conf/all/rp_filter", "ipv4/conf/default/rp_filter"] {
            node.sysctl(path, "0");
        }
        // No addresses, so no words, of its own.
        node.sysctl("ipv6/conf/default/addr_gen_mode", "1");
        node.sysctl("ipv6/conf/default/accept_dad", "0");
        node.sysctl("ipv4/ip_forward", "1");
        node.sysctl("ipv6/conf/all/forwarding", "1");
        let mut others = Vec::new();
        let mut wires = BTreeMap::new();
        let mut commands = Vec::new();
        for place in Place::all() {
            let Some(device) = place.device() else { continue };
            let other = silent();
            commands.push(wire(&node, device, &other));
            for address in place.addresses().into_iter().flatten() {
                commands.push(format!("route add {address} dev {device}"));
                commands.push(format!("neigh add {address} lladdr {} dev {device}", text(OTHER_MAC)));
            }
            wires.insert(place, Wire::open(&other, "eth0"));
            others.push(other);
        }
        for (device, addresses) in UPLINKS.iter().zip(HOST_ADDRESSES) {
            commands.push(format!("addr add {}/32 dev {device}", addresses[0]));
            commands.push(format!("addr add {}/128 dev {device}", addresses[1]));
        }
        batch(&node, &commands);
        Self {
            host: node.run(Host::open),
            node,
            wires,
            barrier: Barrier::new(),
            _others: others,
        }
    }

    /// Sends a packet, from the IP header on, the way that it takes.
    pub fn send(&self, from: Place, packet: &evaluate::Packet, bytes: &[u8]) {
        match self.wires.get(&from) {
            Some(wire) => wire.send(bytes),
            None => self.host.send(packet, bytes),
        }
    }

    /// Waits until everything sent has arrived or is gone; then what has arrived, and where.
    pub fn arrived(&self) -> Vec<(u32, Place)> {
        self.barrier.pass();
        let mut arrived = Vec::new();
        for (place, wire) in &self.wires {
            wire.captured(|id| arrived.push((id, *place)));
        }
        self.host.captured(|id| arrived.push((id, Place::Host)));
        arrived
    }
}

/// A namespace that captures and says nothing.
fn silent() -> Ns {
    let ns = Ns::new();
    ns.sysctl("ipv6/conf/all/disable_ipv6", "1");
    ns.sysctl("ipv6/conf/default/disable_ipv6", "1");
    ns
}

/// Connects `eth0` of a namespace with a device of the node; then what is left to say there.
fn wire(node: &Ns, device: &str, other: &Ns) -> String {
    other.sh(&format!(
        "ip link add eth0 address {} type veth peer name {device} address {} netns {}; ip link set eth0 up",
        text(OTHER_MAC),
        text(NODE_MAC),
        node.path()
    ));
    format!("link set {device} up")
}

fn batch(ns: &Ns, commands: &[String]) {
    ns.sh(&format!("ip -batch - <<'END'\n{}\nEND", commands.join("\n")));
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

impl Wire {
    fn open(ns: &Ns, device: &str) -> Self {
        let open = || {
            let all = SockProtocol::EthAll;
            let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, all).unwrap();
            let mut devices = getifaddrs().unwrap();
            let address = devices.find_map(|found| found.address.filter(|_| found.interface_name == device));
            bind(socket.as_raw_fd(), address.unwrap().as_link_addr().unwrap()).unwrap();
            setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).unwrap();
            socket
        };
        Self(ns.run(open))
    }

    fn send(&self, bytes: &[u8]) {
        let kind: [u8; 2] = if bytes[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
        let frame = [&NODE_MAC, &OTHER_MAC, &kind[..], bytes].concat();
        let sent = send(self.0.as_raw_fd(), &frame, MsgFlags::empty()).unwrap();
        assert_eq!(sent, frame.len());
    }

    /// Numbers of the packets that have come here.
    fn captured(&self, mut each: impl FnMut(u32)) {
        let mut frame = [0; 2048];
        while let Some(length) = received(recv(self.0.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT)) {
            // What was sent here is seen as well.
            if frame.starts_with(&OTHER_MAC)
                && let Some(id) = id_of(&frame[..length])
            {
                each(id);
            }
        }
    }
}

fn received(result: nix::Result<usize>) -> Option<usize> {
    match result {
        Ok(length) => Some(length),
        Err(nix::errno::Errno::EAGAIN) => None,
        Err(error) => panic!("a capture: {error}"),
    }
}

impl Host {
    fn open() -> Self {
        let raw = |domain, protocol: i32| Socket::new(domain, Type::RAW, Some(Protocol::from(protocol))).unwrap();
        let mut receiving = Vec::new();
        for (domain, icmp) in [(Domain::IPV4, 1), (Domain::IPV6, 58)] {
            for protocol in [6, 17, 132, 136, 99, icmp] {
                let socket = raw(domain, protocol);
                setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).unwrap();
                socket.set_nonblocking(true).unwrap();
                receiving.push(socket);
            }
        }
        let sending = [Domain::IPV4, Domain::IPV6].map(|domain| {
            let socket = raw(domain, 255);
            socket.set_mark(SENT).unwrap();
            socket
        });
        Self { sending, receiving }
    }

    /// What policy drops at the output hook is an error to the sender.
    fn send(&self, packet: &evaluate::Packet, bytes: &[u8]) {
        let socket = &self.sending[usize::from(packet.source.is_ipv6())];
        match socket.send_to(bytes, &SockAddr::from(SocketAddr::new(packet.destination, 0))) {
            Ok(sent) => assert_eq!(sent, bytes.len()),
            Err(error) => assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{packet:?}: {error}"),
        }
    }

    fn captured(&self, mut each: impl FnMut(u32)) {
        let mut packet = [MaybeUninit::uninit(); 2048];
        for socket in &self.receiving {
            loop {
                match socket.recv(&mut packet) {
                    // SAFETY: the kernel has written so many bytes.
                    Ok(length) => id_of(unsafe { packet[..length].assume_init_ref() })
                        .into_iter()
                        .for_each(&mut each),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => panic!("a capture on the node: {error}"),
                }
            }
        }
    }
}

impl Barrier {
    fn new() -> Self {
        let (ends, middle) = (silent(), Ns::new());
        middle.sysctl("ipv4/ip_forward", "1");
        for (near, far) in [("from", "in"), ("to", "out")] {
            ends.sh(&format!(
                "ip link add {near} address {} type veth peer name {far} address {} netns {}; ip link set {near} up",
                text(OTHER_MAC),
                text(NODE_MAC),
                middle.path()
            ));
        }
        let commands = [
            "link set in up",
            "link set out up",
            "addr add 10.0.0.1/32 dev in",
            "route add 10.0.0.2 dev in",
            "route add 10.0.0.3 dev out",
        ];
        let mut commands: Vec<String> = commands.into_iter().map(str::to_owned).collect();
        commands.push(format!("neigh add 10.0.0.3 lladdr {} dev out", text(OTHER_MAC)));
        batch(&middle, &commands);
        let to = Wire::open(&ends, "to");
        let limit = TimeVal::new(LIMIT.as_secs() as i64, 0);
        setsockopt(&to.0, sockopt::ReceiveTimeout, &limit).unwrap();
        Self {
            from: Wire::open(&ends, "from"),
            to,
            _namespaces: [ends, middle],
        }
    }

    fn pass(&self) {
        let packet = evaluate::Packet {
            source: "10.0.0.2".parse().unwrap(),
            destination: "10.0.0.3".parse().unwrap(),
            protocol: 99,
            source_port: None,
            destination_port: None,
            icmp: None,
        };
        self.from.send(&super::frame::first(&packet, 0));
        let mut frame = [0; 2048];
        loop {
            let length =
                recv(self.to.0.as_raw_fd(), &mut frame, MsgFlags::empty()).expect("the barrier passes in time");
            if id_of(&frame[..length]).is_some() {
                return;
            }
        }
    }
}
