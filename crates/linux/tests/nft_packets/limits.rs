//! Thresholds and marks, told by the kernel's own counters and by who receives.

use std::os::fd::AsRawFd;

use super::*;

/// Packets of 1000 bytes with their headers, from client to server, all at once.
fn flood(net: &Net, count: usize, family: IpFamily) {
    let at = family as usize;
    let header = if family == IpFamily::V4 { 28 } else { 48 };
    let from = net.udp(&net.client, CLIENT[at], 5000);
    let to = SocketAddr::new(SERVER[at].parse().unwrap(), 53);
    for _ in 0..count {
        from.send_to(&vec![0; 1000 - header], to).unwrap();
    }
}

/// Beyond a threshold packets are dropped; answers how many of ten were.
fn dropped(net: &Net, threshold: Threshold, family: IpFamily) -> u64 {
    let over = vec![Statement::Over(threshold), Statement::Counter];
    net.apply(vec![
        Change::FlushChain("checks".into()),
        rule("checks", vec![from_client(), protocol(17)], over, Some(Verdict::Drop)),
    ]);
    flood(net, 10, family);
    net.counts("checks")[0]
}

#[test]
fn what_is_beyond_a_threshold_is_dropped() {
    let Some(net) = Net::new() else { return };
    net.apply(vec![
        plain("checks"),
        base("forward", ChainKind::Filter, Hook::Forward, 0),
    ]);
    net.apply(vec![rule(
        "forward",
        vec![],
        vec![],
        Some(Verdict::Jump("checks".into())),
    )]);
    for family in IpFamily::BOTH {
        // The resolution of the neighbour comes first: it may keep and drop packets of its own.
        net.send(Kind::Ping(family));
        let packets = |burst| Threshold::Packets { per_second: 1, burst };
        // One more may come in if the machine is slow.
        assert!((5..=6).contains(&dropped(&net, packets(4), family)), "{family:?}");
        assert_eq!(dropped(&net, packets(20), family), 0, "{family:?}");
    }
}

#[test]
fn flows_beyond_a_number_do_not_begin() {
    let Some(net) = Net::new() else { return };
    let over = vec![Statement::Over(Threshold::Flows(2)), Statement::Counter];
    let first = Match::Conntrack([CtState::New].into());
    net.apply(vec![
        base("checks", ChainKind::Filter, Hook::Forward, 0),
        rule(
            "checks",
            vec![from_client(), protocol(17), first],
            over,
            Some(Verdict::Drop),
        ),
    ]);
    let to = net.udp(&net.server, SERVER[0], 53);
    let senders: Vec<_> = (0..4).map(|at| net.udp(&net.client, CLIENT[0], 5000 + at)).collect();
    for sender in &senders[..3] {
        sender.send_to(b"x", to.local_addr().unwrap()).unwrap();
    }
    let heard: Vec<u16> = (0..2).map(|_| to.recv_from(&mut [0; 8]).unwrap().1.port()).collect();
    assert_eq!(heard, [5000, 5001], "the first two flows");
    assert_eq!(net.counts("checks"), [1]);
    net.router.sh("conntrack -F");
    // The kernel looks again for a flow that it has just counted, so its place is not free at once.
    to.set_read_timeout(Some(std::time::Duration::from_millis(50))).unwrap();
    let until = std::time::Instant::now() + LIMIT;
    let next = || {
        senders[3].send_to(b"x", to.local_addr().unwrap()).unwrap();
        to.recv_from(&mut [0; 8]).is_ok_and(|(_, from)| from.port() == 5003)
    };
    while !next() {
        assert!(std::time::Instant::now() < until, "there is room again");
    }
}

#[test]
fn marked_packets_arrive_with_their_mark() {
    let Some(net) = Net::new() else { return };
    let set = |family: IpFamily, value: u8| {
        rule(
            "forward",
            vec![Match::Family(family)],
            vec![Statement::SetDscp { family, value }],
            None,
        )
    };
    net.apply(vec![
        base("forward", ChainKind::Filter, Hook::Forward, 0),
        set(IpFamily::V4, 46),
        set(IpFamily::V6, 10),
    ]);
    for (at, level, ask, kind, dscp) in [
        (0, libc::IPPROTO_IP, libc::IP_RECVTOS, libc::IP_TOS, 46),
        (1, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, libc::IPV6_TCLASS, 10),
    ] {
        let to = net.udp(&net.server, SERVER[at], 53);
        let on = 1_i32.to_ne_bytes();
        // SAFETY: the socket is open, and the option's value is four bytes that live through the call.
        let set = unsafe { libc::setsockopt(to.as_raw_fd(), level, ask, on.as_ptr().cast(), 4) };
        assert_eq!(set, 0);
        let from = net.udp(&net.client, CLIENT[at], 5000);
        from.send_to(b"x", to.local_addr().unwrap()).unwrap();
        assert_eq!(traffic_class(to.as_raw_fd(), level, kind) >> 2, dscp);
    }
}

/// The traffic class that the next packet of a socket came with.
fn traffic_class(socket: i32, level: i32, kind: i32) -> u8 {
    let (mut data, mut control) = ([0_u8; 8], [0_u64; 8]);
    let mut part = libc::iovec {
        iov_base: data.as_mut_ptr().cast(),
        iov_len: data.len(),
    };
    // SAFETY: all zeroes is a message without any buffer.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = std::mem::size_of_val(&control) as _;
    // SAFETY: every buffer of the message lives until the end of this function; headers are read inside of what was received.
    unsafe {
        assert_eq!(libc::recvmsg(socket, &mut message, 0), 1);
        let mut header = libc::CMSG_FIRSTHDR(&message);
        while !header.is_null() {
            if ((*header).cmsg_level, (*header).cmsg_type) == (level, kind) {
                return *libc::CMSG_DATA(header);
            }
            header = libc::CMSG_NXTHDR(&message, header);
        }
    }
    panic!("no traffic class");
}
