// SPDX-License-Identifier: Apache-2.0
//! PCI addresses of the host in the environment of processes (protocol 6.6):
//! device plug-ins name a container's devices there as the host numbers them,
//! and programs look for them as the guest does. Owns the map and the rewriting.

use std::fmt;

use super::DeviceError;

/// What device plug-ins call their variables.
const PREFIX: &str = "PCIDEVICE_";
/// What the variable with details is called after the one with addresses.
const SUFFIX: &str = "_INFO";

/// Of an address, in characters.
const LENGTH: usize = 12;

/// Domain, bus, slot and function of a PCI device: `0000:3b:00.0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PciAddress {
    domain: u16,
    bus: u8,
    slot: u8,
    function: u8,
}

impl PciAddress {
    /// Reads `DDDD:BB:SS.F`, in hexadecimal.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        if bytes.len() != LENGTH || bytes[4] != b':' || bytes[7] != b':' || bytes[10] != b'.' {
            return None;
        }
        let number = |from: usize, to: usize| {
            let digits = text.get(from..to)?;
            let all = digits.bytes().all(|b| b.is_ascii_hexdigit());
            all.then(|| u16::from_str_radix(digits, 16).ok())?
        };
        let small = |from, to, most| {
            let number = u8::try_from(number(from, to)?).ok()?;
            (number <= most).then_some(number)
        };
        Some(Self {
            domain: number(0, 4)?,
            bus: small(5, 7, 0xff)?,
            slot: small(8, 10, 0x1f)?,
            function: small(11, 12, 7)?,
        })
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, .. } = self;
        write!(
            f,
            "{domain:04x}:{bus:02x}:{:02x}.{:x}",
            self.slot, self.function
        )
    }
}

/// Where the guest has what the host knows by another address. All of a
/// container's devices together, sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PciMap(Vec<(PciAddress, PciAddress)>);

impl PciMap {
    /// Adds a device.
    ///
    /// # Errors
    /// [`DeviceError::Conflict`] when the host's address stands for another one already.
    pub fn add(&mut self, host: PciAddress, guest: PciAddress) -> Result<(), DeviceError> {
        match self.find(host) {
            Ok(at) if self.0[at].1 == guest => Ok(()),
            Ok(_) => Err(DeviceError::Conflict {
                what: "PCI addresses",
                of: host.to_string(),
            }),
            Err(at) => {
                self.0.insert(at, (host, guest));
                Ok(())
            }
        }
    }

    fn find(&self, host: PciAddress) -> Result<usize, usize> {
        self.0.binary_search_by_key(&host, |(host, _)| *host)
    }

    fn guest(&self, text: &str) -> Option<PciAddress> {
        let at = self.find(PciAddress::parse(text)?).ok()?;
        Some(self.0[at].1)
    }

    /// Rewrites the variables of device plug-ins. One with an item that is no
    /// address, or an address that is not known, stays as it is, with its details.
    pub fn rewrite(&self, env: &mut [String]) {
        if self.0.is_empty() {
            return;
        }
        let mut known = Vec::new();
        for entry in env.iter_mut() {
            let Some((name, value)) = entry.split_once('=') else {
                continue;
            };
            if !name.starts_with(PREFIX) || name.ends_with(SUFFIX) {
                continue;
            }
            if let Some(value) = self.translate(value) {
                known.push(name.to_owned());
                *entry = format!("{name}={value}");
            }
        }
        known.sort();
        for entry in env {
            let Some((name, value)) = entry.split_once('=') else {
                continue;
            };
            let of = name.strip_suffix(SUFFIX).map(str::to_owned);
            if of.is_some_and(|of| known.binary_search(&of).is_ok()) {
                *entry = format!("{name}={}", self.replace_all(value));
            }
        }
    }

    /// A list of addresses as the guest has them, if all are known.
    fn translate(&self, list: &str) -> Option<String> {
        let mut text = String::with_capacity(list.len());
        for item in list.split(',') {
            if !text.is_empty() {
                text.push(',');
            }
            text.push_str(&self.guest(item)?.to_string());
        }
        Some(text)
    }

    /// Replaces in one pass: an address of the guest may be another one of the host.
    fn replace_all(&self, text: &str) -> String {
        let mut result = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(next) = rest.chars().next() {
            match rest.get(..LENGTH).and_then(|text| self.guest(text)) {
                Some(guest) => {
                    result.push_str(&guest.to_string());
                    rest = &rest[LENGTH..];
                }
                None => {
                    result.push(next);
                    rest = &rest[next.len_utf8()..];
                }
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> PciAddress {
        PciAddress::parse(text).unwrap()
    }

    fn map(pairs: &[(&str, &str)]) -> PciMap {
        let mut map = PciMap::default();
        for (host, guest) in pairs {
            map.add(address(host), address(guest)).unwrap();
        }
        map
    }

    fn rewritten(map: &PciMap, env: &[&str]) -> Vec<String> {
        let mut env: Vec<_> = env.iter().map(|&e| e.to_owned()).collect();
        map.rewrite(&mut env);
        env
    }

    #[test]
    fn the_grammar() {
        assert_eq!(address("0000:3B:1f.7").to_string(), "0000:3b:1f.7");
        for bad in [
            "",
            "3b:00.0",
            "0000:3b:00",
            "0000:3b:20.0",
            "0000:3b:00.8",
            "0000:3b:00.00",
            "+000:3b:00.0",
            "0000:3b:é.0",
            "0000-3b-00.0",
        ] {
            assert_eq!(PciAddress::parse(bad), None, "{bad:?}");
        }
    }

    /// The reference keeps the pairs of the last device only.
    #[test]
    fn bug_addresses_of_all_devices_are_known() {
        let map = map(&[
            ("0000:1a:01.0", "0000:01:00.0"),
            ("0000:1b:02.0", "0000:02:00.0"),
        ]);
        let env = rewritten(
            &map,
            &[
                "PCIDEVICE_A=0000:1b:02.0,0000:1a:01.0",
                "PCIDEVICE_A_INFO={\"0000:1a:01.0\":{\"x\":\"0000:1b:02.0\"}}",
                "PATH=0000:1a:01.0",
            ],
        );
        assert_eq!(env[0], "PCIDEVICE_A=0000:02:00.0,0000:01:00.0");
        assert_eq!(
            env[1],
            "PCIDEVICE_A_INFO={\"0000:01:00.0\":{\"x\":\"0000:02:00.0\"}}"
        );
        assert_eq!(env[2], "PATH=0000:1a:01.0");
    }

    #[test]
    fn what_is_not_all_known_stays() {
        let map = map(&[("0000:1a:01.0", "0000:01:00.0")]);
        let env = [
            "PCIDEVICE_A=0000:1a:01.0,0000:1a:02.0",
            "PCIDEVICE_A_INFO=0000:1a:01.0",
            "PCIDEVICE_B=0000:1a:01.0,mdev",
            "PCIDEVICE_C=",
            "PCIDEVICE_D",
            "PCIDEVICE_INFO=0000:1a:01.0",
        ];
        assert_eq!(rewritten(&map, &env), env);
        let env = ["PCIDEVICE_A=0000:1a:01.0"];
        assert_eq!(rewritten(&PciMap::default(), &env), env);
    }

    #[test]
    fn addresses_that_are_exchanged_are_replaced_once() {
        let (one, other) = ("0000:01:00.0", "0000:02:00.0");
        let map = map(&[(one, other), (other, one)]);
        let variable = format!("PCIDEVICE_A={one},{other}");
        let info = format!("PCIDEVICE_A_INFO=é{one}-{other}");
        let env = rewritten(&map, &[&info, &variable]);
        assert_eq!(env[0], format!("PCIDEVICE_A_INFO=é{other}-{one}"));
        assert_eq!(env[1], format!("PCIDEVICE_A={other},{one}"));
    }

    #[test]
    fn an_address_has_one_meaning() {
        let mut map = map(&[("0000:1a:01.0", "0000:01:00.0")]);
        let host = address("0000:1a:01.0");
        map.add(host, address("0000:01:00.0")).unwrap();
        assert!(map.add(host, address("0000:02:00.0")).is_err());
    }
}
