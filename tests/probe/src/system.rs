// SPDX-License-Identifier: Apache-2.0
//! The kernel and its machine.

use crate::facts::Facts;

/// uname(2).
pub fn uname() -> Facts {
    let name = rustix::system::uname();
    let mut facts = Facts::default();
    facts.add("sysname", name.sysname().to_string_lossy());
    facts.add("nodename", name.nodename().to_string_lossy());
    facts.add("release", name.release().to_string_lossy());
    facts.add("version", name.version().to_string_lossy());
    facts.add("machine", name.machine().to_string_lossy());
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_the_one_compiled_for() {
        assert_eq!(uname().get("machine"), Some(std::env::consts::ARCH));
    }
}
