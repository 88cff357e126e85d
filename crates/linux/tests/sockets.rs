//! Packet capture and TCP options, in fresh namespaces.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use linux::capture::{Capture, Direction, Selection};
use linux::tcp;
use testkit::netns::{in_netns, tool};

#[test]
fn a_capture_yields_what_it_was_asked_for() {
    in_netns(|| async {
        tool("ip link set lo up");
        let mut all = Capture::open(None, Selection::Ipv4Protocols(&[4, 1])).expect("opens");
        let mut none = Capture::open(Some(&"lo".into()), Selection::Ipv4Protocols(&[4])).expect("opens");
        let mut arp = Capture::open(None, Selection::ArpAndIpv4).expect("opens");
        let mut every = Capture::open(Some(&"lo".into()), Selection::All).expect("opens");
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").expect("binds");
        udp.send_to(b"not ICMP", udp.local_addr().expect("has one"))
            .expect("sends");
        tool("ping -c 1 127.0.0.1");
        let mut directions = Vec::new();
        while let Some(packet) = all.try_next().expect("reads") {
            assert_eq!((packet.ethertype, packet.bytes[0], packet.bytes[9]), (0x0800, 0x45, 1));
            assert_eq!((packet.index, packet.bytes.len(), packet.length), (1, 84, 84));
            assert!(packet.at.elapsed().is_ok_and(|age| age < Duration::from_secs(60)));
            directions.push(packet.direction);
        }
        use Direction::{In, Out};
        assert_eq!(
            directions,
            [Out, In, Out, In],
            "request and reply, each leaving and arriving"
        );
        let first = every
            .next_within(Duration::from_secs(5))
            .expect("reads")
            .expect("the datagram");
        assert_eq!((first.direction, first.bytes[9]), (Out, 17));
        let lo = "lo".into();
        every
            .send(&lo, kernel::Mac([2; 6]), 0x0806, b"a question")
            .expect("sends");
        while let Some(packet) = arp.next_within(Duration::ZERO).expect("reads") {
            if packet.ethertype == 0x0806 {
                assert_eq!(packet.bytes, b"a question");
                break;
            }
            assert_eq!(packet.ethertype, 0x0800);
        }
        assert_eq!(none.next_within(Duration::ZERO).expect("reads"), None);
        let error = Capture::open(Some(&"nope".into()), Selection::All)
            .err()
            .expect("no such device");
        assert_eq!(
            (error.kind(), error.to_string().as_str()),
            (ErrorKind::NotFound, "no device nope")
        );
    });
}

#[test]
fn packets_of_an_address_are_picked_also_inside_ip_in_ip() {
    in_netns(|| async {
        tool("ip link set lo up");
        let to: IpAddr = "192.0.2.7".parse().expect("an address");
        let other: IpAddr = "192.0.2.9".parse().expect("an address");
        let mut v4 = Capture::open(None, Selection::Of(vec![other, to], 17)).expect("opens");
        let six = "fd00::7".parse().expect("an address");
        let mut v6 = Capture::open(None, Selection::Of(vec![six], 58)).expect("opens");
        let many = Capture::open(None, Selection::Of(vec![six; linux::capture::ENDS + 1], 58));
        assert_eq!(many.err().map(|error| error.kind()), Some(ErrorKind::InvalidInput));
        let header = |protocol: u8, to: [u8; 4]| {
            let mut bytes = vec![0x45, 0, 0, 200, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1];
            bytes.extend(to);
            bytes
        };
        let inside = |outer: u8, inner: Vec<u8>| [header(outer, [10, 0, 0, 2]), inner].concat();
        let mut six = vec![0x60, 0, 0, 0, 0, 200, 58, 64];
        six.extend([0; 16]);
        six.extend("fd00::7".parse::<std::net::Ipv6Addr>().expect("an address").octets());
        let mut other = six.clone();
        other[39] = 8;
        let mut reply_six = six.clone();
        reply_six[8..40].rotate_left(16);
        let mut reply = header(17, [10, 0, 0, 9]);
        reply[12..20].rotate_left(4);
        reply[12..16].copy_from_slice(&[192, 0, 2, 9]);
        let sent: [(u16, Vec<u8>, bool, bool); 11] = [
            (0x0800, reply.clone(), true, false),
            (0x0800, inside(4, reply), true, false),
            (0x86dd, reply_six, false, true),
            (0x0800, header(17, [192, 0, 2, 7]), true, false),
            (0x0800, header(17, [192, 0, 2, 8]), false, false),
            (0x0800, header(6, [192, 0, 2, 7]), false, false),
            (0x0800, inside(4, header(17, [192, 0, 2, 7])), true, false),
            (0x0800, inside(4, header(6, [192, 0, 2, 7])), false, false),
            (0x0800, inside(47, header(17, [192, 0, 2, 7])), false, false),
            (0x86dd, six, false, true),
            (0x86dd, other, false, false),
        ];
        for (ethertype, mut bytes, by_v4, by_v6) in sent {
            bytes.resize(400, 7);
            v4.send(&"lo".into(), kernel::Mac([2; 6]), ethertype, &bytes)
                .expect("sends");
            let seen = |capture: &mut Capture| {
                let packet = capture.try_next().expect("reads");
                // It comes back in.
                drop(capture.try_next());
                packet.map(|packet| packet.bytes)
            };
            let head = bytes[..linux::capture::HEAD as usize].to_vec();
            assert_eq!(seen(&mut v4), by_v4.then(|| head.clone()), "{:?}", &bytes[..40]);
            assert_eq!(seen(&mut v6), by_v6.then_some(head), "{:?}", &bytes[..40]);
        }
    });
}

#[test]
fn a_signed_session_comes_up_and_an_unsigned_one_is_dropped() {
    in_netns(|| async {
        tool("ip link set lo up");
        for local in ["127.0.0.1", "::1"] {
            let ip: IpAddr = local.parse().expect("an address");
            let listener = tcp::listen(SocketAddr::new(ip, 0), 8).expect("listens");
            tcp::set_md5(&listener, ip, b"secret").expect("this kernel signs");
            let address = listener
                .local_addr()
                .expect("has one")
                .as_socket()
                .expect("is an IP one");

            let before = counter("TCPMD5NotFound");
            let unsigned = tcp::outgoing(address, Some(ip)).expect("opens");
            assert!(unsigned.connect(&address.into()).is_err(), "in progress, and stays so");
            assert!(counter("TCPMD5NotFound") > before, "the unsigned SYN was dropped");

            tcp::set_ttl_security(&listener, ip, 1).expect("sets");
            let before = counter("TCPMinTTLDrop");
            let distant = tcp::outgoing(address, Some(ip)).expect("opens");
            tcp::set_md5(&distant, ip, b"secret").expect("sets");
            tcp::set_ttl(&distant, ip, 254).expect("sets");
            assert!(distant.connect(&address.into()).is_err(), "in progress, and stays so");
            assert!(
                counter("TCPMinTTLDrop") > before,
                "the SYN that may have crossed a router was dropped"
            );

            let signed = tcp::outgoing(address, Some(ip)).expect("opens");
            tcp::set_md5(&signed, ip, b"secret").expect("sets");
            tcp::set_ttl_security(&signed, ip, 1).expect("sets");
            assert!(signed.tcp_nodelay().expect("asks"));
            let connecting = tokio::net::TcpSocket::from_std_stream(signed.into()).connect(address);
            let listener = tokio::net::TcpListener::from_std(listener.into()).expect("in a runtime");
            let (accepted, connected) = tokio::join!(listener.accept(), connecting);
            let (_, from) = accepted.expect("accepts");
            assert_eq!(from, connected.expect("connects").local_addr().expect("has one"));
            let long = tcp::set_md5(&listener, ip, &[b'x'; 81]).expect_err("too long");
            assert_eq!(long.kind(), ErrorKind::InvalidInput);
        }
    });
}

/// A counter of this namespace's TCP.
fn counter(wanted: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/netstat").expect("is there");
    let mut lines = text
        .lines()
        .filter(|line| line.starts_with("TcpExt:"))
        .map(str::split_whitespace);
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let (_, value) = names.zip(values).find(|(name, _)| *name == wanted).expect("is counted");
    value.parse().expect("a number")
}
