//! One ARP question and its answer (RFC 826), from the calling thread's namespace.

use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use kernel::{IfName, Mac};
use linux::capture::{Capture, Selection};
use linux::link;
use linux::request::Socket;

/// Asks who has `target`; the answering MAC and the time it took, or `None` if nobody answers in time.
pub fn who_has(
    device: &str,
    own: Ipv4Addr,
    target: Ipv4Addr,
    patience: Duration,
) -> io::Result<Option<(Mac, Duration)>> {
    let device = IfName::from(device);
    let details = link::find(&mut Socket::open()?, &device).map_err(|error| io::Error::other(error.to_string()))?;
    let missing = || io::Error::other(format!("no Ethernet device {device}"));
    let mac = details.and_then(|details| details.link.mac).ok_or_else(missing)?;
    let mut capture = Capture::open(Some(&device), Selection::ArpAndIp)?;
    let started = Instant::now();
    capture.send(&device, BROADCAST, ETHERTYPE_ARP, &question(mac, own, target))?;
    loop {
        let Some(left) = patience.checked_sub(started.elapsed()) else {
            return Ok(None);
        };
        let Some(packet) = capture.next_within(left)? else {
            continue;
        };
        if packet.ethertype == ETHERTYPE_ARP
            && let Some(answer) = answer(&packet.bytes, target)
        {
            return Ok(Some((answer, started.elapsed())));
        }
    }
}

const BROADCAST: Mac = Mac([0xff; 6]);
const ETHERTYPE_ARP: u16 = 0x0806;
/// Ethernet, IPv4, lengths 6 and 4.
const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];

fn question(mac: Mac, own: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    [
        &ETHERNET_IPV4[..],
        &[0, 1],
        &mac.0,
        &own.octets(),
        &[0; 6],
        &target.octets(),
    ]
    .concat()
}

/// The sender of a reply about `target`.
fn answer(arp: &[u8], target: Ipv4Addr) -> Option<Mac> {
    let arp = arp.first_chunk::<28>()?;
    let is_reply = arp[..6] == ETHERNET_IPV4 && arp[6..8] == [0, 2];
    let mac = arp[8..14].try_into().ok()?;
    (is_reply && arp[14..18] == target.octets()).then_some(Mac(mac))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_reply_about_the_target_is_an_answer() {
        let (own, target) = (Ipv4Addr::new(192, 168, 0, 5), Ipv4Addr::new(169, 254, 1, 1));
        let mut frame = question(Mac([2, 0, 0, 0, 0, 1]), own, target);
        assert_eq!(frame.len(), 28);
        assert_eq!(answer(&frame, own), None, "a question is no answer");
        frame[7] = 2;
        assert_eq!(answer(&frame, own), Some(Mac([2, 0, 0, 0, 0, 1])));
        assert_eq!(answer(&frame, target), None, "an answer about somebody else");
        assert_eq!(answer(&frame[..27], own), None, "cut short");
    }
}
