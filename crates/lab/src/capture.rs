//! Packets of a device in a namespace, decoded.

use std::io::Write;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use ctl::packet::{self, Packet};
use kernel::IfName;
use linux::capture::{Capture, Direction, Selection};
use linux::netns::{self, Netns};

use crate::LabError;
use crate::record::Folder;

/// A captured packet.
pub struct Captured {
    /// Left the namespace by this device, rather than came in.
    pub outgoing: bool,
    /// What it was.
    pub packet: Packet,
}

/// Packets of a device, captured by a thread in its namespace until this value is dropped.
pub struct Tap {
    packets: mpsc::Receiver<Captured>,
    /// While it lives, the thread does.
    _wanted: Arc<()>,
}

impl Tap {
    /// Starts to capture. When this returns, no packet is missed any more.
    pub fn open(netns: &str, device: &str) -> Result<Self, LabError> {
        let what = format!("capturing on {device} of {netns}");
        let place = Netns::open(&netns::path(netns)).map_err(LabError::io(what.clone()))?;
        let device = IfName::from(device);
        let capture = place
            .run(|| Capture::open(Some(&device), Selection::ArpAndIp))
            .map_err(LabError::io(what.clone()))?;
        let mut capture = capture.map_err(LabError::io(what))?;
        let (send, packets) = mpsc::channel();
        let wanted = Arc::new(());
        let life = Arc::downgrade(&wanted);
        std::thread::spawn(move || {
            while life.strong_count() > 0 {
                let frame = match capture.next_within(Duration::from_millis(200)) {
                    Ok(Some(frame)) => frame,
                    Ok(None) => continue,
                    Err(_) => return,
                };
                let outgoing = frame.direction == Direction::Out;
                if let Some(packet) = packet::ip(&frame.bytes) {
                    let _ = send.send(Captured { outgoing, packet });
                }
            }
        });
        Ok(Self {
            packets,
            _wanted: wanted,
        })
    }

    /// The first packet that `wanted` likes, if it comes in time.
    pub fn find(&self, patience: Duration, wanted: impl Fn(&Captured) -> bool) -> Option<Captured> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.checked_duration_since(Instant::now())?;
            let captured = self.packets.recv_timeout(left).ok()?;
            if wanted(&captured) {
                return Some(captured);
            }
        }
    }
}

/// Prints packets as they come.
pub fn follow(
    folder: &Folder,
    node: &str,
    device: &str,
    count: Option<usize>,
    out: &mut dyn Write,
) -> Result<(), LabError> {
    let record = folder.read()?;
    let (netns, _) = record.place(node)?;
    let tap = Tap::open(&netns, device)?;
    eprintln!("capturing on {device} of {node}; end with Ctrl-C");
    let started = Instant::now();
    for captured in tap.packets.iter().take(count.unwrap_or(usize::MAX)) {
        let arrow = if captured.outgoing { "out" } else { "in " };
        let mut lines = captured.packet.lines().into_iter();
        let first = lines.next().unwrap_or_default();
        let mut print = || {
            writeln!(out, "{:9.4}  {arrow}  {first}", started.elapsed().as_secs_f64())?;
            lines.try_for_each(|line| writeln!(out, "                {line}"))?;
            out.flush()
        };
        print().map_err(LabError::io("standard output"))?;
    }
    Ok(())
}
