// SPDX-License-Identifier: Apache-2.0
//! What a container has used, for StatsContainer, and the watch over its
//! memory. Reads only, and never under the container's lock.

use std::path::PathBuf;

use super::plan::Namespace;
use super::{Container, ContainerError};
use crate::cgroup::{OomWatch, Stats};

/// The guest's own counters: the agent lives in its network namespace.
const GUEST: &str = "/proc/self/net/dev";

/// Figures of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerStats {
    /// Of its group.
    pub cgroup: Stats,
    /// Of the interfaces that it sees, without loopback: hosts add them up to
    /// what the pod has sent and received.
    pub interfaces: Vec<Interface>,
}

/// Counters of one interface and one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// Packets that were damaged.
    pub errors: u64,
    /// Packets that were thrown away.
    pub dropped: u64,
}

/// Counters of one interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Received.
    pub received: Traffic,
    /// Sent.
    pub sent: Traffic,
}

impl Container {
    /// Reads all figures: for the blocking pool.
    #[must_use]
    pub fn stats(&self) -> ContainerStats {
        ContainerStats {
            cgroup: self.cgroup.stats(),
            interfaces: self.interfaces(),
        }
    }

    /// Begins to watch for OOM kills; see [`crate::cgroup::Cgroup::watch_oom`].
    ///
    /// # Errors
    /// [`ContainerError::Cgroup`].
    pub fn watch_oom(&self) -> Result<Option<OomWatch>, ContainerError> {
        Ok(self.cgroup.watch_oom()?)
    }

    /// In Kata's usual case there is no network namespace but the guest's. Of
    /// another one the first process is the only way in, while it lives.
    fn interfaces(&self) -> Vec<Interface> {
        let own = self
            .namespaces()
            .iter()
            .any(|(kind, _)| *kind == Namespace::Net);
        let path = match own {
            true => PathBuf::from(format!("/proc/{}/net/dev", self.init.pid())),
            false => PathBuf::from(GUEST),
        };
        let Ok(text) = std::fs::read_to_string(path) else {
            return Vec::new();
        };
        // What was read may be another process's if this one is gone by now.
        if own && !self.init.is_alive() {
            return Vec::new();
        }
        parse(&text)
    }
}

/// `/proc/net/dev`: two lines of headings, then `name: 8 numbers received, 8 sent`.
fn parse(text: &str) -> Vec<Interface> {
    text.lines()
        .filter_map(|line| {
            // A name may contain colons, numbers do not.
            let (name, counts) = line.rsplit_once(':')?;
            let mut numbers = counts
                .split_ascii_whitespace()
                .map(|word| word.parse().ok());
            let mut next = || numbers.next().flatten();
            let received = traffic(&mut next)?;
            // Of received packets: fifo, frame, compressed, multicast.
            for _ in 0..4 {
                next()?;
            }
            Some(Interface {
                name: name.trim_start().to_owned(),
                received,
                sent: traffic(&mut next)?,
            })
        })
        .filter(|interface| interface.name != "lo")
        .collect()
}

fn traffic(next: &mut impl FnMut() -> Option<u64>) -> Option<Traffic> {
    Some(Traffic {
        bytes: next()?,
        packets: next()?,
        errors: next()?,
        dropped: next()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  eth0: 18446744073709551615 2 3 4 5 6 7 8 11 12 13 14 15 16 17 18
 a:b:1: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0
";

    #[test]
    fn interfaces_without_loopback() {
        let interfaces = parse(TEXT);
        let names: Vec<_> = interfaces.iter().map(|i| i.name.as_str()).collect();
        assert_eq!(names, ["eth0", "a:b:1"]);
        let eth0 = &interfaces[0];
        let received = (eth0.received.bytes, eth0.received.packets);
        assert_eq!(received, (u64::MAX, 2));
        assert_eq!((eth0.received.errors, eth0.received.dropped), (3, 4));
        assert_eq!((eth0.sent.bytes, eth0.sent.packets), (11, 12));
        assert_eq!((eth0.sent.errors, eth0.sent.dropped), (13, 14));
    }

    #[test]
    fn the_guests_own_file_has_this_form() {
        let text = std::fs::read_to_string(GUEST).unwrap();
        let loopback = text
            .lines()
            .filter(|line| line.trim_start().starts_with("lo:"));
        assert_eq!(
            parse(&text).len(),
            text.lines().count() - 2 - loopback.count()
        );
    }

    proptest::proptest! {
        #[test]
        fn no_text_is_too_odd(text in "(\\PC|[0-9: \n]){0,200}") {
            let _ = parse(&text);
        }
    }
}
