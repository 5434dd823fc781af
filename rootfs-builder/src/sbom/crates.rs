// SPDX-License-Identifier: Apache-2.0
//! Reads from a `Cargo.lock` what a package of the workspace depends on.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

/// Why a lock file says nothing of a package.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// It is no lock file.
    #[error("Cargo.lock is not what cargo writes")]
    Toml(#[from] toml::de::Error),
    /// The package is not in it.
    #[error("Cargo.lock has no package {package}")]
    Unknown {
        /// Its name.
        package: String,
    },
}

/// A crate that a program is made of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Crate {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The digest of its archive; the workspace's own crates have none.
    pub checksum: Option<String>,
    /// Whether it comes from the public registry, where its name means the same to everyone.
    pub is_published: bool,
}

#[derive(Deserialize)]
struct Lock {
    #[serde(default)]
    package: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    source: Option<String>,
    checksum: Option<String>,
    #[serde(default)]
    dependencies: Vec<String>,
}

/// Every crate that `package` needs, itself included, sorted. A lock file does not tell what is needed at run time from what is needed
/// to build or test, nor one platform from another, so all of it counts.
pub fn closure(lock: &str, package: &str) -> Result<Vec<Crate>, LockError> {
    let lock: Lock = toml::from_str(lock)?;
    let mut by_name: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, package) in lock.package.iter().enumerate() {
        by_name.entry(&package.name).or_default().push(index);
    }
    let unknown = |name: &str| LockError::Unknown {
        package: name.to_owned(),
    };
    let find = |dependency: &str| {
        // A name, then its version where there are several, then its source where that is not enough.
        let mut words = dependency.split_whitespace();
        let name = words.next().unwrap_or_default();
        let (version, source) = (words.next(), words.next());
        let source = source.map(|source| source.trim_matches(['(', ')']));
        let candidates = by_name.get(name).into_iter().flatten().copied();
        let fits = |index: &usize| {
            let package = &lock.package[*index];
            version.is_none_or(|version| package.version == version)
                && source.is_none_or(|source| package.source.as_deref() == Some(source))
        };
        candidates
            .into_iter()
            .find(fits)
            .ok_or_else(|| unknown(dependency))
    };
    let mut seen = BTreeSet::new();
    let mut open = vec![find(package)?];
    while let Some(index) = open.pop() {
        if seen.insert(index) {
            for dependency in &lock.package[index].dependencies {
                open.push(find(dependency)?);
            }
        }
    }
    let mut crates: Vec<Crate> = seen
        .into_iter()
        .map(|index| Crate::of(&lock.package[index]))
        .collect();
    crates.sort();
    Ok(crates)
}

impl Crate {
    fn of(package: &Package) -> Crate {
        let source = package.source.as_deref().unwrap_or_default();
        Crate {
            name: package.name.clone(),
            version: package.version.clone(),
            checksum: package.checksum.clone(),
            is_published: source == "registry+https://github.com/rust-lang/crates.io-index",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str = r#"
version = 4

[[package]]
name = "agent"
version = "0.1.0"
dependencies = ["a", "b 2.0.0", "c 1.0.0 (git+https://example.org/c)"]

[[package]]
name = "a"
version = "1.0.0"
source = "registry+https://github.com/rust-lang/crates.io-index"
checksum = "00"
dependencies = ["b 1.0.0", "agent"]

[[package]]
name = "b"
version = "1.0.0"

[[package]]
name = "b"
version = "2.0.0"

[[package]]
name = "c"
version = "1.0.0"
source = "git+https://example.org/c"

[[package]]
name = "unrelated"
version = "1.0.0"
"#;

    #[test]
    fn what_a_package_needs_is_found_through_all_forms_of_names() {
        let crates = closure(LOCK, "agent").unwrap();
        let names: Vec<_> = crates
            .iter()
            .map(|krate| format!("{} {} {}", krate.name, krate.version, krate.is_published))
            .collect();
        assert_eq!(
            names,
            [
                "a 1.0.0 true",
                "agent 0.1.0 false",
                "b 1.0.0 false",
                "b 2.0.0 false",
                "c 1.0.0 false"
            ]
        );
        assert_eq!(crates[0].checksum.as_deref(), Some("00"));
        assert_eq!(closure(LOCK, "b").unwrap().len(), 1);
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = closure(LOCK, "gone").unwrap_err().to_string();
        assert_eq!(error, "Cargo.lock has no package gone");
        let broken = LOCK.replace("\"b 2.0.0\"", "\"b 3.0.0\"");
        assert!(
            closure(&broken, "agent")
                .unwrap_err()
                .to_string()
                .ends_with("b 3.0.0")
        );
        assert!(matches!(
            closure("[[package", "agent"),
            Err(LockError::Toml(_))
        ));
    }

    #[test]
    fn the_workspaces_own_lock_file_is_read() {
        let text = include_str!("../../../Cargo.lock");
        let crates = closure(text, "agent").unwrap();
        let has = |name: &str| crates.iter().any(|krate| krate.name == name);
        assert!(has("agent") && has("init") && has("tokio") && has("libc"));
        assert!(!has("rootfs-builder") && !has("clap"));
        for krate in crates.iter().filter(|krate| krate.is_published) {
            assert_eq!(krate.checksum.as_ref().unwrap().len(), 64, "{}", krate.name);
        }
    }
}
