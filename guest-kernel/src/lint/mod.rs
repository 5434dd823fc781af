// SPDX-License-Identifier: Apache-2.0
//! What a kernel lacks for the guest, and for one image.
//!
//! Judges a configuration only: it never looks at a running kernel. What cannot be done without is told apart from what some
//! containers will miss, and from what merely makes our own kernels quicker or smaller.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

use crate::arch::Arch;
use crate::config::{Config, Missing, check_config};
use crate::fragments::{self, FragmentError};
use crate::modules::GUEST_MODULES;
use needed::{CHOICES, DEPENDENCIES};

mod needed;

pub use needed::{NEEDED, Needed};

/// An option that the kernel does not have as it should.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lack {
    /// Its name without `CONFIG_`; several that would each do are joined by `|`.
    pub option: String,
    /// The value it should have.
    pub wanted: String,
    /// The value it has; none if it is off or unknown.
    pub has: Option<String>,
    /// Which of our fragments asks for it, as `network`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concern: Option<String>,
    /// What it is for, or why the value it has will not do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has = match self.has.as_deref() {
            None => "not set",
            Some("m") => "a module",
            Some(value) => value,
        };
        write!(f, "CONFIG_{}={} (is {has})", self.option, self.wanted)?;
        match &self.reason {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}

/// What a kernel was found to lack.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Lint {
    /// The guest, or the image, does not work without these.
    pub required: Vec<Lack>,
    /// Something that containers may want is missing.
    pub wished: Vec<Lack>,
    /// Our own kernels have it otherwise, for time, memory or safety.
    pub tuning: Vec<Lack>,
    /// Options that are served by modules, by the module's name.
    pub modules: BTreeMap<String, String>,
}

/// An image as far as its kernel matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Options without which the kernel cannot use it, each with the reason.
    pub requirements: Vec<(String, String)>,
    /// Whether the kernel has to mount it before any module can be loaded.
    pub is_root: bool,
    /// Names of the modules in it.
    pub modules: BTreeSet<String>,
}

/// Checks a configuration against what the guest needs, what our fragments ask for, and what one image needs if there is one.
/// Without an image, a module that ours are known to bring counts as there.
pub fn lint(actual: &Config, arch: Arch, image: Option<&Image>) -> Result<Lint, FragmentError> {
    let mut lint = Lint::default();
    let judge = Judge { actual, image };
    if let Some(image) = image {
        judge.image(image, &mut lint);
    }
    judge.guest(&mut lint);
    let request = fragments::request(arch, &[], &[])?;
    for missing in check_config(&request, actual) {
        if known(&lint, &missing.option) || NEEDED.iter().any(|n| has(n.any, &missing.option)) {
            continue;
        }
        judge.fragment(missing, arch, &mut lint)?;
    }
    Ok(lint)
}

fn has(options: &[&str], option: &str) -> bool {
    options.contains(&option)
}

fn known(lint: &Lint, option: &str) -> bool {
    lint.required.iter().any(|lack| lack.option == option)
}

fn served(lint: &mut Lint, option: &str, module: &str) {
    lint.modules.insert(option.to_owned(), module.to_owned());
}

/// What a kernel has of an option that should be `y`.
enum State<'a> {
    BuiltIn,
    /// By a module that the guest loads.
    Module(&'a str),
    /// By a module that nobody loads.
    Stranded,
    Other(Option<String>),
}

fn lack(option: &str, state: State<'_>, reason: Option<&str>) -> Lack {
    let (has, note) = match state {
        State::Module(_) => (Some("m".to_owned()), None),
        State::Stranded => (Some("m".to_owned()), Some("nothing loads this module")),
        State::Other(value) => (value, None),
        State::BuiltIn => (Some("y".to_owned()), None),
    };
    let texts: Vec<&str> = reason.into_iter().chain(note).collect();
    Lack {
        option: option.to_owned(),
        wanted: "y".to_owned(),
        has,
        concern: None,
        reason: (!texts.is_empty()).then(|| texts.join("; ")),
    }
}

struct Judge<'a> {
    actual: &'a Config,
    image: Option<&'a Image>,
}

impl Judge<'_> {
    fn state(&self, option: &str) -> State<'static> {
        match self.actual.value(option) {
            Some("y") => State::BuiltIn,
            Some("m") => match module_of(option) {
                Some(name) if self.image.is_none_or(|i| i.modules.contains(name)) => {
                    State::Module(name)
                }
                _ => State::Stranded,
            },
            other => State::Other(other.map(str::to_owned)),
        }
    }

    /// What the image needs. The root that the kernel mounts comes before any module.
    fn image(&self, image: &Image, lint: &mut Lint) {
        for (option, reason) in &image.requirements {
            match self.state(option) {
                State::BuiltIn => {}
                State::Module(name) if !image.is_root => served(lint, option, name),
                State::Module(_) | State::Stranded if image.is_root => {
                    let reason = format!(
                        "{reason}; without an initramfs in front the kernel needs it built in"
                    );
                    let state = State::Other(Some("m".to_owned()));
                    lint.required.push(lack(option, state, Some(&reason)));
                }
                state => lint.required.push(lack(option, state, Some(reason))),
            }
        }
    }

    /// What one of our fragments asks for, and the kernel does not have.
    fn fragment(&self, missing: Missing, arch: Arch, lint: &mut Lint) -> Result<(), FragmentError> {
        let option = missing.option.as_str();
        let concern = fragments::asking(arch, option)?;
        let concern = concern.map(|name| name.trim_end_matches(".config").to_owned());
        if missing.requested != "y" || has(CHOICES, option) {
            lint.tuning.push(Lack {
                wanted: missing.requested,
                concern,
                ..lack(&missing.option, State::Other(missing.actual), None)
            });
            return Ok(());
        }
        match self.state(option) {
            State::Module(name) => served(lint, option, name),
            state => lint.wished.push(Lack {
                concern,
                ..lack(option, state, None)
            }),
        }
        Ok(())
    }

    /// What every guest needs.
    fn guest(&self, lint: &mut Lint) {
        for need in NEEDED {
            let mut states = need.any.iter().map(|option| (*option, self.state(option)));
            let good = states.find(|(_, s)| matches!(s, State::BuiltIn | State::Module(_)));
            match good {
                Some((option, State::Module(name))) => served(lint, option, name),
                Some(_) => {}
                None if need.any.iter().any(|option| known(lint, option)) => {}
                None => {
                    let state = need.any.first().map(|option| self.state(option));
                    let state = state.unwrap_or(State::Other(None));
                    let found = lack(&need.any.join("|"), state, Some(need.reason));
                    lint.required.push(found);
                }
            }
        }
    }
}

/// The module that an option is built as, where the guest loads it.
fn module_of(option: &str) -> Option<&'static str> {
    let wanted = GUEST_MODULES.iter().map(|w| (w.option, w.name));
    let mut all = wanted.chain(DEPENDENCIES.iter().copied());
    all.find(|(of, _)| *of == option).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours(arch: Arch) -> Config {
        fragments::request(arch, &[], &[]).unwrap()
    }

    fn changed(arch: Arch, lines: &str) -> Config {
        let mut config = ours(arch);
        config.merge(Config::parse(lines).unwrap());
        config
    }

    fn options(lacks: &[Lack]) -> Vec<&str> {
        lacks.iter().map(|lack| lack.option.as_str()).collect()
    }

    #[test]
    fn our_own_kernels_lack_nothing() {
        for arch in Arch::ALL {
            assert_eq!(lint(&ours(arch), arch, None).unwrap(), Lint::default());
        }
    }

    #[test]
    fn what_our_modules_must_bring_is_needed() {
        for module in GUEST_MODULES.iter().filter(|w| w.required) {
            assert!(
                NEEDED.iter().any(|n| has(n.any, module.option)),
                "{}",
                module.option
            );
        }
    }

    #[test]
    fn the_required_the_wished_and_the_tuned_are_told_apart() {
        let config = changed(
            Arch::X86_64,
            "# CONFIG_MEMCG is not set\n# CONFIG_XFS_FS is not set\nCONFIG_SQUASHFS=m\nCONFIG_DEBUG_FS=y\nCONFIG_NR_CPUS=64\n# CONFIG_HZ_100 is not set\n\
             # CONFIG_VIRTIO_PCI is not set\n# CONFIG_CGROUP_BPF is not set\n# CONFIG_CGROUP_DEVICE is not set\n",
        );
        let found = lint(&config, Arch::X86_64, None).unwrap();
        assert_eq!(
            options(&found.required),
            ["MEMCG", "CGROUP_BPF|CGROUP_DEVICE"]
        );
        assert_eq!(options(&found.wished), ["SQUASHFS", "XFS_FS"]);
        assert_eq!(options(&found.tuning), ["DEBUG_FS", "HZ_100", "NR_CPUS"]);
        assert_eq!(found.wished[0].concern.as_deref(), Some("filesystems"));
        assert_eq!(
            found.required[0].to_string(),
            "CONFIG_MEMCG=y (is not set): limits of memory"
        );
        assert_eq!(
            found.wished[0].to_string(),
            "CONFIG_SQUASHFS=y (is a module): nothing loads this module"
        );
        assert_eq!(found.tuning[2].to_string(), "CONFIG_NR_CPUS=240 (is 64)");
    }

    #[test]
    fn a_module_counts_where_it_is_loaded() {
        let config = changed(
            Arch::Aarch64,
            "CONFIG_VSOCKETS=m\nCONFIG_OVERLAY_FS=m\nCONFIG_EROFS_FS=m\n",
        );
        let found = lint(&config, Arch::Aarch64, None).unwrap();
        assert!(found.required.is_empty() && found.wished.is_empty());
        let modules: Vec<_> = found.modules.values().map(String::as_str).collect();
        assert_eq!(modules, ["erofs", "overlay", "vsock"]);
        let image = Image {
            modules: ["vsock".to_owned()].into(),
            ..Image::default()
        };
        let found = lint(&config, Arch::Aarch64, Some(&image)).unwrap();
        assert_eq!(options(&found.required), ["OVERLAY_FS"]);
        assert_eq!(options(&found.wished), ["EROFS_FS"]);
    }

    #[test]
    fn a_root_that_the_kernel_mounts_takes_no_modules() {
        let config = changed(
            Arch::X86_64,
            "CONFIG_EROFS_FS=m\n# CONFIG_RD_ZSTD is not set\n",
        );
        let mut image = Image {
            requirements: vec![("EROFS_FS".to_owned(), "the root is erofs".to_owned())],
            is_root: true,
            modules: ["erofs".to_owned()].into(),
        };
        let found = lint(&config, Arch::X86_64, Some(&image)).unwrap();
        assert_eq!(
            found.required[0].to_string(),
            "CONFIG_EROFS_FS=y (is a module): the root is erofs; without an initramfs in front the kernel needs it built in"
        );
        assert_eq!(options(&found.wished), ["RD_ZSTD"]);
        image.is_root = false;
        let found = lint(&config, Arch::X86_64, Some(&image)).unwrap();
        assert!(found.required.is_empty());
        image.requirements[0] = ("RD_ZSTD".to_owned(), "compressed with zstd".to_owned());
        let found = lint(&config, Arch::X86_64, Some(&image)).unwrap();
        assert_eq!(
            (options(&found.required), found.wished.len()),
            (vec!["RD_ZSTD"], 0)
        );
    }
}
