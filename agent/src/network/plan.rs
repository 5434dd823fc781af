// SPDX-License-Identifier: Apache-2.0
//! What hosts ask of the network, checked (protocol 10). Owns the grammar of
//! names, hardware addresses, prefixes and routes; below it nothing is text.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use super::NetworkError;
use super::list::{Address, Family, RTNH_F_ONLINK};
use crate::device::pci::PciPath;

/// Routes or neighbours of one request. Bounded by what its answer may hold too.
pub const MAX_ENTRIES: usize = 32 * 1024;
/// Addresses of one interface.
pub const MAX_ADDRESSES: usize = 1024;

/// IFNAMSIZ, with the byte that ends a name.
const NAME_SIZE: usize = 16;
/// Longer than the path of any device.
const PATH_SIZE: usize = 256;
/// The least of IPv4, and the most that any link of the kernel's has.
const MTU: std::ops::RangeInclusive<u64> = 68..=65_536;

/// The name of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkName(String);

impl LinkName {
    /// What the kernel takes for a name (`dev_valid_name()`), but no pattern, and
    /// no name that has another meaning below `/proc/sys/net`.
    ///
    /// # Errors
    /// [`NetworkError::Invalid`].
    pub fn parse(text: &str) -> Result<Self, NetworkError> {
        let refuse = |reason| NetworkError::invalid("interface name", text, reason);
        if text.is_empty() || text.len() >= NAME_SIZE {
            return Err(refuse("it must have 1 to 15 bytes"));
        }
        let odd = |c: char| matches!(c, '/' | ':' | '%') || c.is_whitespace() || c.is_control();
        if matches!(text, "." | ".." | "all" | "default") || text.contains(odd) {
            return Err(refuse("no interface can be called that"));
        }
        Ok(Self(text.to_owned()))
    }

    /// As [`LinkName::parse`], for a link that is to be changed: never the loopback.
    ///
    /// # Errors
    /// [`NetworkError::Invalid`].
    pub fn changeable(text: &str) -> Result<Self, NetworkError> {
        if text == "lo" {
            let reason = "the loopback interface is not changed";
            return Err(NetworkError::invalid("interface name", text, reason));
        }
        Self::parse(text)
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An Ethernet address of one station.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mac([u8; 6]);

impl Mac {
    /// Reads six groups of one or two hexadecimal digits, joined by `:`.
    ///
    /// # Errors
    /// [`NetworkError::Invalid`], also for addresses of groups and for all zeros.
    pub fn parse(text: &str) -> Result<Self, NetworkError> {
        let refuse = |reason| NetworkError::invalid("MAC address", text, reason);
        let mut groups = text.split(':');
        let mut bytes = [0u8; 6];
        for byte in &mut bytes {
            let group = groups.next().and_then(hex);
            *byte = group.ok_or_else(|| refuse("it is not six groups of hexadecimal digits"))?;
        }
        if groups.next().is_some() {
            return Err(refuse("it has more than six groups"));
        }
        if bytes == [0; 6] || bytes[0] & 1 != 0 {
            return Err(refuse("no single station can have it"));
        }
        Ok(Self(bytes))
    }

    /// The same; nothing is `None`.
    ///
    /// # Errors
    /// As [`Mac::parse`].
    pub fn optional(text: &str) -> Result<Option<Self>, NetworkError> {
        (!text.is_empty()).then(|| Self::parse(text)).transpose()
    }

    /// In the order in which they are sent.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

fn hex(group: &str) -> Option<u8> {
    let digits = group.bytes().all(|b| b.is_ascii_hexdigit());
    let short = (1..=2).contains(&group.len());
    (digits && short).then(|| u8::from_str_radix(group, 16).ok())?
}

/// An address as it comes in text; an empty one is absent.
fn optional_ip(field: &'static str, text: &str) -> Result<Option<IpAddr>, NetworkError> {
    if text.is_empty() {
        return Ok(None);
    }
    let ip: Result<IpAddr, _> = text.parse();
    let ip = ip.map_err(|_| NetworkError::invalid(field, text, "it is not an IP address"))?;
    // "No address" has a form of its own in either family.
    Ok((!ip.is_unspecified()).then_some(ip))
}

/// The number of bits in an address of its family.
fn width(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

/// A prefix length, or a mask of IPv4 with its ones in front.
fn prefix(ip: IpAddr, text: &str) -> Result<u8, NetworkError> {
    let refuse = |reason| NetworkError::invalid("prefix length", text, reason);
    if let Ok(mask) = text.parse::<Ipv4Addr>() {
        let mask = u32::from(mask);
        return match (ip, u8::try_from(mask.leading_ones())) {
            (IpAddr::V4(_), Ok(ones)) if mask.leading_ones() == mask.count_ones() => Ok(ones),
            _ => Err(refuse("it is no mask for that address")),
        };
    }
    let plain = text.bytes().all(|b| b.is_ascii_digit());
    let length = text.parse().ok().filter(|_| plain);
    let length: u8 = length.ok_or_else(|| refuse("it is not a number"))?;
    if length > width(ip) {
        return Err(refuse("it is longer than the address"));
    }
    Ok(length)
}

/// An address of an interface. The text tells its family.
///
/// # Errors
/// [`NetworkError::Invalid`].
pub fn address(text: &str, mask: &str) -> Result<Address, NetworkError> {
    let absent = || NetworkError::invalid("address", text, "no interface can have it");
    let ip = optional_ip("address", text)?.ok_or_else(absent)?;
    let prefix = prefix(ip, mask)?;
    Ok(Address { ip, prefix })
}

/// What UpdateInterface asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfacePlan {
    /// As it shall be called.
    pub name: LinkName,
    /// As it is known, or shall be.
    pub mac: Option<Mac>,
    /// All that it shall have.
    pub addresses: Vec<Address>,
    /// Left as it is if absent.
    pub mtu: Option<u32>,
    /// Whether it resolves addresses.
    pub arp: bool,
    /// The device it belongs to, which may still have to come.
    pub device: Option<PciPath>,
}

/// The MTU of a request, in which 0 leaves it as it is.
///
/// # Errors
/// [`NetworkError::Invalid`].
pub fn mtu(bytes: u64) -> Result<Option<u32>, NetworkError> {
    let refuse = || NetworkError::invalid("MTU", &bytes.to_string(), "no link has such a one");
    match u32::try_from(bytes) {
        Ok(0) => Ok(None),
        Ok(mtu) if MTU.contains(&bytes) => Ok(Some(mtu)),
        _ => Err(refuse()),
    }
}

/// A PCI path; an empty one is absent.
///
/// # Errors
/// [`NetworkError::Path`], or [`NetworkError::Invalid`] for a text without end.
pub fn device(text: &str) -> Result<Option<PciPath>, NetworkError> {
    if text.len() > PATH_SIZE {
        let reason = "it is too long";
        return Err(NetworkError::invalid("PCI path", text, reason));
    }
    let path = (!text.is_empty()).then(|| PciPath::parse(text));
    path.transpose().map_err(NetworkError::Path)
}

/// One route that UpdateRoutes asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutePlan {
    /// Where to; the bits beyond the prefix are 0.
    pub dest: Address,
    /// By which router, which may be one of IPv6 for destinations of IPv4.
    pub gateway: Option<IpAddr>,
    /// Over which link.
    pub device: LinkName,
    /// The address that packets are sent from.
    pub source: Option<IpAddr>,
    /// `RT_SCOPE_*`.
    pub scope: u8,
    /// The gateway is there though no address says so.
    pub onlink: bool,
    /// 0: none of its own.
    pub mtu: u32,
}

/// A route in the words of the wire.
#[derive(Debug, Clone, Copy)]
pub struct RouteWords<'a> {
    /// `ADDRESS/PREFIX`, `ADDRESS`, or nothing for all of its family.
    pub dest: &'a str,
    /// `ADDRESS` or nothing.
    pub gateway: &'a str,
    /// A name.
    pub device: &'a str,
    /// `ADDRESS`, with or without a prefix, or nothing.
    pub source: &'a str,
    /// `RT_SCOPE_*`.
    pub scope: u32,
    /// Counts where no address tells.
    pub family: Family,
    /// `RTNH_F_*`.
    pub flags: u32,
    /// 0 for none.
    pub mtu: u32,
}

impl RoutePlan {
    /// Checks a route.
    ///
    /// # Errors
    /// [`NetworkError::Invalid`].
    pub fn new(words: RouteWords<'_>) -> Result<Self, NetworkError> {
        let gateway = optional_ip("gateway", words.gateway)?;
        let source = words.source.split_once('/').unwrap_or((words.source, ""));
        let source = optional_ip("source address", source.0)?;
        let dest = destination(words.dest)?;
        let dest = dest.unwrap_or_else(|| everywhere(source.or(gateway), words.family));
        let refuse = |field, text, reason| Err(NetworkError::invalid(field, text, reason));
        if gateway.is_some_and(|ip| ip.is_ipv4()) && dest.ip.is_ipv6() {
            return refuse("gateway", words.gateway, "it is of the wrong family");
        }
        if source.is_some_and(|ip| ip.is_ipv4() != dest.ip.is_ipv4()) {
            return refuse("source address", words.source, "it is of the wrong family");
        }
        let scope = words.scope;
        let bad = || NetworkError::invalid("scope", &scope.to_string(), "there is no such scope");
        Ok(Self {
            dest,
            gateway,
            device: LinkName::parse(words.device)?,
            source,
            scope: u8::try_from(scope).map_err(|_| bad())?,
            // The others are states of the host's routes.
            onlink: words.flags & RTNH_F_ONLINK != 0,
            mtu: mtu(u64::from(words.mtu))?.unwrap_or(0),
        })
    }

    /// Of the destination.
    #[must_use]
    pub fn family(&self) -> Family {
        if self.dest.ip.is_ipv4() {
            Family::V4
        } else {
            Family::V6
        }
    }
}

impl fmt::Display for RoutePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.dest.fmt(f)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        write!(f, " dev {}", self.device)
    }
}

/// A destination, with what is beyond its prefix taken off as routes must have it.
fn destination(text: &str) -> Result<Option<Address>, NetworkError> {
    let (ip, length) = text.split_once('/').unwrap_or((text, ""));
    if ip.is_empty() {
        return Ok(None);
    }
    let refuse = || NetworkError::invalid("destination", text, "it is not a network");
    let ip: IpAddr = ip.parse().map_err(|_| refuse())?;
    let prefix = match length {
        "" => width(ip),
        length => prefix(ip, length)?,
    };
    Ok(Some(Address { ip, prefix }.network()))
}

/// The default destination of an address's family.
fn everywhere(other: Option<IpAddr>, family: Family) -> Address {
    let v4 = other.map_or(family == Family::V4, |ip| ip.is_ipv4());
    let ip = if v4 {
        IpAddr::from([0; 4])
    } else {
        IpAddr::from([0; 16])
    };
    Address { ip, prefix: 0 }
}

/// One entry that AddARPNeighbors asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NeighbourPlan {
    /// Its address.
    pub ip: IpAddr,
    /// Where it is.
    pub device: LinkName,
    /// Its hardware address, if the state needs one.
    pub mac: Option<Mac>,
    /// `NUD_*`.
    pub state: u8,
    /// `NTF_*`.
    pub flags: u8,
}

impl NeighbourPlan {
    /// Checks a neighbour; a state of 0 means that it stays for good.
    ///
    /// # Errors
    /// [`NetworkError::Invalid`].
    pub fn new(
        ip: &str,
        device: &str,
        mac: &str,
        state: i32,
        flags: i32,
    ) -> Result<Self, NetworkError> {
        let no_ip = || NetworkError::invalid("neighbour's address", ip, "it is not an address");
        let refuse = || {
            NetworkError::invalid(
                "neighbour's state",
                &state.to_string(),
                "there is no such state",
            )
        };
        let [flags, ..] = flags.to_le_bytes();
        Ok(Self {
            ip: optional_ip("neighbour's address", ip)?.ok_or_else(no_ip)?,
            device: LinkName::parse(device)?,
            mac: Mac::optional(mac)?,
            state: match u8::try_from(state).map_err(|_| refuse())? {
                0 => nix::libc::NUD_PERMANENT as u8,
                state => state,
            },
            flags,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words<'a>(dest: &'a str, gateway: &'a str) -> RouteWords<'a> {
        RouteWords {
            dest,
            gateway,
            device: "eth0",
            source: "",
            scope: 0,
            family: Family::V4,
            flags: 0,
            mtu: 0,
        }
    }

    fn route(dest: &str, gateway: &str) -> RoutePlan {
        RoutePlan::new(words(dest, gateway)).unwrap()
    }

    #[test]
    fn names() {
        for good in ["eth0", "a", "exactly15bytes_", "über", "eth0.100"] {
            assert_eq!(LinkName::parse(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a b",
            "a:1",
            "eth%d",
            "sixteen_bytes_xx",
            "a\0",
            "a\n",
            "all",
        ] {
            assert!(LinkName::parse(bad).unwrap_err().is_bad_input(), "{bad:?}");
        }
        assert!(LinkName::parse("lo").is_ok());
        assert!(LinkName::changeable("lo").is_err());
    }

    #[test]
    fn hardware_addresses() {
        let mac = Mac::parse("02:0:aB:cd:ef:1").unwrap();
        assert_eq!(mac.bytes(), [2, 0, 0xab, 0xcd, 0xef, 1]);
        assert_eq!(Mac::optional("").unwrap(), None);
        for bad in [
            "",
            "02",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "02:00:00:00:00:001",
            "02:00:00:00:00:+1",
            "02-00-00-00-00-01",
            "00:00:00:00:00:00",
            "ff:ff:ff:ff:ff:ff",
            "01:00:5e:00:00:01",
        ] {
            let error = Mac::parse(bad).unwrap_err();
            assert!(error.is_bad_input(), "{bad}");
            assert!(error.to_string().starts_with("Failed to parse MAC address"));
        }
    }

    #[test]
    fn prefixes_are_lengths_or_masks() {
        let prefix = |ip: &str, mask: &str| address(ip, mask).map(|a| a.prefix).ok();
        assert_eq!(prefix("10.0.0.2", "24"), Some(24));
        assert_eq!(prefix("10.0.0.2", "255.255.255.0"), Some(24));
        assert_eq!(prefix("10.0.0.2", "0.0.0.0"), Some(0));
        assert_eq!(prefix("fd00::2", "128"), Some(128));
        for (ip, mask) in [
            ("10.0.0.2", "33"),
            ("10.0.0.2", ""),
            ("10.0.0.2", "+24"),
            ("10.0.0.2", "-1"),
            ("10.0.0.2", "256"),
            ("10.0.0.2", "255.0.255.0"),
            ("fd00::2", "129"),
            ("fd00::2", "255.255.0.0"),
            ("fe80::1%eth0", "64"),
            ("0.0.0.0", "0"),
            ("", "24"),
        ] {
            assert_eq!(prefix(ip, mask), None, "{ip} {mask}");
        }
    }

    #[test]
    fn an_mtu_is_within_what_links_have() {
        assert_eq!(mtu(0).unwrap(), None);
        assert_eq!(mtu(9000).unwrap(), Some(9000));
        assert!(mtu(67).is_err() && mtu(65_537).is_err() && mtu(u64::MAX).is_err());
    }

    /// #2768: the family is the address's, whatever the enum says.
    #[test]
    fn bug_2768_the_family_is_the_addresses() {
        assert_eq!(route("fd00::/64", "").family(), Family::V6);
        assert_eq!(
            route("", "fe80::1").to_string(),
            "::/0 via fe80::1 dev eth0"
        );
        let mut wrong = words("10.0.0.0/8", "");
        wrong.family = Family::V6;
        assert_eq!(RoutePlan::new(wrong).unwrap().family(), Family::V4);
        wrong.dest = "";
        assert_eq!(RoutePlan::new(wrong).unwrap().dest.to_string(), "::/0");
    }

    #[test]
    fn destinations() {
        assert_eq!(route("10.1.2.3/8", "").dest.to_string(), "10.0.0.0/8");
        assert_eq!(route("10.1.2.3", "").dest.to_string(), "10.1.2.3/32");
        assert_eq!(route("fd00::1:2/64", "").dest.to_string(), "fd00::/64");
        assert_eq!(route("0.0.0.0/0", "").dest.to_string(), "0.0.0.0/0");
        assert_eq!(route("", "").dest.to_string(), "0.0.0.0/0");
        assert_eq!(route("10.0.0.0/8", "fe80::1").family(), Family::V4);
        for bad in ["10.0.0.0/33", "10.0.0.0/x", "banana", "10.0.0/8", "::/129"] {
            assert!(RoutePlan::new(words(bad, "")).is_err(), "{bad}");
        }
        assert!(RoutePlan::new(words("fd00::/64", "10.0.0.1")).is_err());
        assert!(RoutePlan::new(words("10.0.0.0/8", "x")).is_err());
    }

    #[test]
    fn bug_a_source_is_an_address_with_or_without_a_prefix() {
        let source = |text| {
            let mut words = words("10.0.0.0/8", "");
            words.source = text;
            RoutePlan::new(words).map(|route| route.source)
        };
        let ten = Some("10.0.0.2".parse().unwrap());
        assert_eq!(source("10.0.0.2").unwrap(), ten);
        assert_eq!(source("10.0.0.2/32").unwrap(), ten);
        assert_eq!(source("0.0.0.0").unwrap(), None);
        assert!(source("fd00::1").is_err() && source("x").is_err());
    }

    #[test]
    fn states_of_a_route_are_no_wishes() {
        let mut down = words("10.0.0.0/8", "10.0.0.1");
        down.flags = 0x11;
        assert!(!RoutePlan::new(down).unwrap().onlink);
        down.flags = 0x14;
        assert!(RoutePlan::new(down).unwrap().onlink);
        down.scope = 256;
        assert!(RoutePlan::new(down).is_err());
    }

    #[test]
    fn neighbours() {
        let new = |ip, mac, state| NeighbourPlan::new(ip, "eth0", mac, state, 0x1_80);
        let plan = new("fd00::7", "02:00:00:00:00:07", 0).unwrap();
        assert_eq!((plan.state, plan.flags), (0x80, 0x80));
        assert_eq!(new("10.0.0.7", "", 0x40).unwrap().mac, None);
        assert!(new("", "", 0).is_err() && new("10.0.0.7", "zz", 0).is_err());
        assert!(new("10.0.0.7", "", 256).is_err() && new("10.0.0.7", "", -1).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_words_can_be_read(dest: String, gateway: String, source: String, device: String) {
            let mut words = words(&dest, &gateway);
            (words.source, words.device) = (&source, &device);
            let _ = RoutePlan::new(words);
            let _ = (address(&dest, &gateway), Mac::parse(&source));
        }
    }
}
