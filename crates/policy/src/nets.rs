//! Addresses of one member, inline where there are few: there may be hundreds of thousands.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Prefixes, as a rule one address or one of each family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Nets {
    None,
    V4([u8; 4]),
    V6([u8; 16]),
    Both([u8; 4], [u8; 16]),
    Many(Box<[IpNet]>),
}

impl Nets {
    pub fn new(nets: &[IpNet]) -> Self {
        let is_address = |net: &IpNet| net.prefix_len() == net.max_prefix_len();
        match nets {
            [] => Nets::None,
            [IpNet::V4(net)] if is_address(&nets[0]) => Nets::V4(net.addr().octets()),
            [IpNet::V6(net)] if is_address(&nets[0]) => Nets::V6(net.addr().octets()),
            [IpNet::V4(v4), IpNet::V6(v6)] if nets.iter().all(is_address) => {
                Nets::Both(v4.addr().octets(), v6.addr().octets())
            }
            nets => Nets::Many(nets.into()),
        }
    }

    pub fn each(&self, mut visit: impl FnMut(IpNet)) {
        let v4 = |octets: [u8; 4]| IpNet::from(std::net::IpAddr::V4(Ipv4Addr::from(octets)));
        let v6 = |octets: [u8; 16]| IpNet::from(std::net::IpAddr::V6(Ipv6Addr::from(octets)));
        match self {
            Nets::None => {}
            Nets::V4(octets) => visit(v4(*octets)),
            Nets::V6(octets) => visit(v6(*octets)),
            Nets::Both(a, b) => {
                visit(v4(*a));
                visit(v6(*b));
            }
            Nets::Many(nets) => nets.iter().for_each(|net| visit(*net)),
        }
    }
}
