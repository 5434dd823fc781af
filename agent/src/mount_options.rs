// SPDX-License-Identifier: Apache-2.0
//! Mount options as words: the table that turns them into flags for mount(2),
//! attributes for mount_setattr(2), and data for the file system. One table
//! for the storages of a sandbox and the mounts of a container (protocol 4.7.1
//! and 5.2). Never mounts anything.

use nix::mount::MsFlags;

/// The kernel copies one page of mount data, its end mark included, and cuts
/// or refuses the rest.
const DATA_LIMIT: usize = 4095;

/// Attributes of mount_setattr(2); the numbers are those of linux/mount.h.
pub mod attribute {
    /// Nothing below may be written.
    pub const RDONLY: u64 = 0x0000_0001;
    /// Set-user-id bits do nothing.
    pub const NOSUID: u64 = 0x0000_0002;
    /// Device nodes cannot be opened.
    pub const NODEV: u64 = 0x0000_0004;
    /// Nothing can be executed.
    pub const NOEXEC: u64 = 0x0000_0008;
    /// The field of the access time rule: all of it must be cleared to set one.
    pub const ATIME: u64 = 0x0000_0070;
    /// Access times are never updated.
    pub const NOATIME: u64 = 0x0000_0010;
    /// Access times are always updated.
    pub const STRICTATIME: u64 = 0x0000_0020;
    /// Access times of directories are never updated.
    pub const NODIRATIME: u64 = 0x0000_0080;
    /// Symbolic links are not followed.
    pub const NOSYMFOLLOW: u64 = 0x0020_0000;
}

/// Options that cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MountOptionError {
    /// A loop device would have to be set up first.
    #[error("Mount option {word:?} is not supported")]
    Unsupported {
        /// The option.
        word: String,
    },
    /// The words for the file system do not fit into one page.
    #[error("Mount options take {length} bytes, the kernel takes {DATA_LIMIT}")]
    TooLong {
        /// Their length, joined.
        length: usize,
    },
    /// A NUL byte would end the text early.
    #[error("Mount option {word:?} has a NUL byte")]
    Nul {
        /// The option.
        word: String,
    },
}

/// What a list of option words asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOptions {
    /// For mount(2), without propagation.
    pub flags: MsFlags,
    /// Flags the words ask to be off (`rw`, `suid`, …): what a remount must
    /// not take over from the mount beneath.
    pub cleared: MsFlags,
    /// Propagation changes, each with `MS_REC` where asked for, in order. They
    /// need a mount(2) of their own.
    pub propagation: Vec<MsFlags>,
    /// For mount_setattr(2) with `AT_RECURSIVE` (`rro` and its kin).
    pub recursive: RecursiveAttributes,
    /// The other words, joined by commas.
    pub data: String,
}

/// Attributes for a whole tree of mounts, as [`attribute`] numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecursiveAttributes {
    /// To switch on.
    pub set: u64,
    /// To switch off.
    pub clear: u64,
}

impl RecursiveAttributes {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.set == 0 && self.clear == 0
    }
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            flags: MsFlags::empty(),
            cleared: MsFlags::empty(),
            propagation: Vec::new(),
            recursive: RecursiveAttributes::default(),
            data: String::new(),
        }
    }
}

impl MountOptions {
    /// Flags and data that are known to be right.
    pub fn plain(flags: MsFlags, data: String) -> Self {
        Self {
            flags,
            cleared: MsFlags::empty(),
            propagation: Vec::new(),
            recursive: RecursiveAttributes::default(),
            data,
        }
    }

    /// Reads option words, each of which may itself be a list with commas. Of
    /// words that contradict each other the last one counts.
    ///
    /// # Errors
    /// `loop`, a NUL byte, and more than one page of data; all bad input.
    pub fn parse<S: AsRef<str>>(words: &[S]) -> Result<Self, MountOptionError> {
        let mut options = Self::default();
        for word in words.iter().flat_map(|w| w.as_ref().split(',')) {
            options.take(word)?;
        }
        if options.data.len() > DATA_LIMIT {
            return Err(MountOptionError::TooLong {
                length: options.data.len(),
            });
        }
        Ok(options)
    }

    fn take(&mut self, word: &str) -> Result<(), MountOptionError> {
        if let Some((_, on, flag)) = FLAGS.iter().find(|(name, ..)| *name == word) {
            if *on {
                self.flags |= *flag;
                self.cleared &= !*flag;
            } else {
                self.flags &= !*flag;
                self.cleared |= *flag;
            }
            return Ok(());
        }
        if let Some(flag) = propagation_flag(word) {
            self.propagation.push(flag);
            return Ok(());
        }
        if let Some((_, set, clear)) = RECURSIVE.iter().find(|(name, ..)| *name == word) {
            self.recursive.set = self.recursive.set & !clear | set;
            self.recursive.clear = self.recursive.clear & !set | clear;
            return Ok(());
        }
        match word {
            "" | "defaults" => Ok(()),
            "loop" => Err(MountOptionError::Unsupported { word: word.into() }),
            word if word.contains('\0') => Err(MountOptionError::Nul { word: word.into() }),
            word => {
                if !self.data.is_empty() {
                    self.data.push(',');
                }
                self.data.push_str(word);
                Ok(())
            }
        }
    }

    /// Whether a directory or file is to be bound rather than a file system mounted.
    pub fn is_bind(&self) -> bool {
        self.flags.contains(MsFlags::MS_BIND)
    }

    /// Whether `ro` was asked for.
    pub fn read_only(&self) -> bool {
        self.flags.contains(MsFlags::MS_RDONLY)
    }

    /// The flags a bind mount only takes from a second, remounting mount(2);
    /// none of them asked for means none is needed.
    pub fn needs_remount(&self) -> bool {
        let bind = MsFlags::MS_BIND | MsFlags::MS_REC | MsFlags::MS_REMOUNT | MsFlags::MS_SILENT;
        self.is_bind() && !(self.flags - bind).is_empty()
    }
}

/// The flags of a propagation word; also what `linux.rootfsPropagation` holds.
pub fn propagation_flag(word: &str) -> Option<MsFlags> {
    let (word, recursive) = match word {
        "private" | "shared" | "slave" | "unbindable" => (word, MsFlags::empty()),
        _ => (word.strip_prefix('r')?, MsFlags::MS_REC),
    };
    let flag = match word {
        "private" => MsFlags::MS_PRIVATE,
        "shared" => MsFlags::MS_SHARED,
        "slave" => MsFlags::MS_SLAVE,
        "unbindable" => MsFlags::MS_UNBINDABLE,
        _ => return None,
    };
    Some(flag | recursive)
}

/// `MS_NOSYMFOLLOW`, Linux 5.10: neither nix nor libc has it.
pub const NOSYMFOLLOW: MsFlags = MsFlags::from_bits_retain(0x100);

/// Word, whether it sets or clears, and the flag of mount(2).
const FLAGS: &[(&str, bool, MsFlags)] = &[
    ("acl", true, MsFlags::MS_POSIXACL),
    ("async", false, MsFlags::MS_SYNCHRONOUS),
    ("atime", false, MsFlags::MS_NOATIME),
    ("bind", true, MsFlags::MS_BIND),
    ("dev", false, MsFlags::MS_NODEV),
    ("diratime", false, MsFlags::MS_NODIRATIME),
    ("dirsync", true, MsFlags::MS_DIRSYNC),
    ("exec", false, MsFlags::MS_NOEXEC),
    ("iversion", true, MsFlags::MS_I_VERSION),
    ("lazytime", true, MsFlags::MS_LAZYTIME),
    ("loud", false, MsFlags::MS_SILENT),
    ("mand", true, MsFlags::MS_MANDLOCK),
    ("noacl", false, MsFlags::MS_POSIXACL),
    ("noatime", true, MsFlags::MS_NOATIME),
    ("nodev", true, MsFlags::MS_NODEV),
    ("nodiratime", true, MsFlags::MS_NODIRATIME),
    ("noexec", true, MsFlags::MS_NOEXEC),
    ("noiversion", false, MsFlags::MS_I_VERSION),
    ("nolazytime", false, MsFlags::MS_LAZYTIME),
    ("nomand", false, MsFlags::MS_MANDLOCK),
    ("norelatime", false, MsFlags::MS_RELATIME),
    ("nostrictatime", false, MsFlags::MS_STRICTATIME),
    ("nosuid", true, MsFlags::MS_NOSUID),
    ("nosymfollow", true, NOSYMFOLLOW),
    ("rbind", true, MsFlags::MS_BIND.union(MsFlags::MS_REC)),
    ("relatime", true, MsFlags::MS_RELATIME),
    ("remount", true, MsFlags::MS_REMOUNT),
    ("ro", true, MsFlags::MS_RDONLY),
    ("rw", false, MsFlags::MS_RDONLY),
    ("silent", true, MsFlags::MS_SILENT),
    ("strictatime", true, MsFlags::MS_STRICTATIME),
    ("suid", false, MsFlags::MS_NOSUID),
    ("symfollow", false, NOSYMFOLLOW),
    ("sync", true, MsFlags::MS_SYNCHRONOUS),
];

/// Word, attributes to set and to clear in a whole tree (OCI runtime
/// specification, `mounts`). An access time rule replaces the whole field.
const RECURSIVE: &[(&str, u64, u64)] = &[
    ("rro", attribute::RDONLY, 0),
    ("rrw", 0, attribute::RDONLY),
    ("rnosuid", attribute::NOSUID, 0),
    ("rsuid", 0, attribute::NOSUID),
    ("rnodev", attribute::NODEV, 0),
    ("rdev", 0, attribute::NODEV),
    ("rnoexec", attribute::NOEXEC, 0),
    ("rexec", 0, attribute::NOEXEC),
    ("rnodiratime", attribute::NODIRATIME, 0),
    ("rdiratime", 0, attribute::NODIRATIME),
    ("rrelatime", 0, attribute::ATIME),
    ("rnorelatime", 0, attribute::ATIME),
    ("rnoatime", attribute::NOATIME, attribute::ATIME),
    ("ratime", 0, attribute::ATIME),
    ("rstrictatime", attribute::STRICTATIME, attribute::ATIME),
    ("rnostrictatime", 0, attribute::ATIME),
    ("rnosymfollow", attribute::NOSYMFOLLOW, 0),
    ("rsymfollow", 0, attribute::NOSYMFOLLOW),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> MountOptions {
        MountOptions::parse(words).unwrap()
    }

    #[test]
    fn every_word_of_the_protocol_is_known() {
        let words = "acl async atime bind defaults dev diratime dirsync exec iversion lazytime \
            loud mand noacl noatime nodev nodiratime noexec noiversion nolazytime nomand \
            norelatime nostrictatime nosuid rbind relatime remount ro rw silent strictatime suid \
            sync nosymfollow symfollow private slave shared unbindable rprivate rslave rshared runbindable";
        for word in words.split_whitespace() {
            assert_eq!(parse(&[word]).data, "", "{word}");
        }
    }

    #[test]
    fn the_last_word_counts() {
        assert!(!parse(&["ro", "rw"]).read_only());
        let options = parse(&["rw", "nosuid", "ro"]);
        assert_eq!(options.flags, MsFlags::MS_RDONLY | MsFlags::MS_NOSUID);
        assert!(options.cleared.is_empty());
        assert_eq!(parse(&["nodev", "dev"]).cleared, MsFlags::MS_NODEV);
    }

    #[test]
    fn other_words_are_data_in_their_order() {
        let options = parse(&["size=64k", "nosuid", "mode=1777", "a,ro,b", ""]);
        assert_eq!(options.data, "size=64k,mode=1777,a,b");
        assert_eq!(options.flags, MsFlags::MS_NOSUID | MsFlags::MS_RDONLY);
    }

    #[test]
    fn propagation_is_kept_apart() {
        let options = parse(&["rbind", "rprivate", "shared"]);
        assert_eq!(options.flags, MsFlags::MS_BIND | MsFlags::MS_REC);
        let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
        assert_eq!(options.propagation, [private, MsFlags::MS_SHARED]);
        assert_eq!(propagation_flag("rrprivate"), None);
        assert_eq!(propagation_flag("r"), None);
        assert_eq!(propagation_flag(""), None);
    }

    #[test]
    fn recursive_attributes_replace_each_other() {
        let set = |words: &[&str]| parse(words).recursive;
        assert_eq!(set(&["rro"]).set, attribute::RDONLY);
        assert_eq!(set(&["rro", "rrw"]).set, 0);
        assert_eq!(set(&["rro", "rrw"]).clear, attribute::RDONLY);
        let atime = set(&["rnoatime", "rstrictatime"]);
        assert_eq!(atime.set, attribute::STRICTATIME);
        // The kernel wants the whole field cleared when it is set anew.
        assert_eq!(atime.clear, attribute::ATIME);
        assert!(set(&["ro"]).is_empty());
    }

    #[test]
    fn a_bind_with_flags_needs_a_second_call() {
        assert!(!parse(&["bind", "rw"]).needs_remount());
        assert!(!parse(&["rbind"]).needs_remount());
        assert!(parse(&["rbind", "ro"]).needs_remount());
        assert!(!parse(&["ro"]).needs_remount());
    }

    #[test]
    fn what_is_refused() {
        let refused = |word: &str| MountOptions::parse(&[word]).unwrap_err();
        assert!(matches!(
            refused("loop"),
            MountOptionError::Unsupported { .. }
        ));
        assert!(matches!(refused("a\0b"), MountOptionError::Nul { .. }));
        assert!(MountOptions::parse(&["x".repeat(DATA_LIMIT)]).is_ok());
        let long = refused(&"x".repeat(DATA_LIMIT + 1));
        assert_eq!(long, MountOptionError::TooLong { length: 4096 });
    }

    proptest::proptest! {
        #[test]
        fn no_word_panics_and_data_holds_no_known_word(words: Vec<String>) {
            if let Ok(options) = MountOptions::parse(&words) {
                for word in options.data.split(',').filter(|w| !w.is_empty()) {
                    proptest::prop_assert!(!FLAGS.iter().any(|(name, ..)| *name == word));
                }
            }
        }
    }
}
