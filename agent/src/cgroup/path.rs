// SPDX-License-Identifier: Apache-2.0
//! Where a container's cgroup lies, as said by `linux.cgroupsPath`. Owns the
//! grammar only; never touches the file system.

use super::CgroupError;

/// Where a path goes that names no group for the container to lie in: what
/// guards the guest's devices is attached to a group above the container's.
const ABOVE: &str = "keelson";

/// A checked cgroup path, relative to the root of each hierarchy: two or more
/// components joined by `/`, none of them empty, `.` or `..`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CgroupPath(String);

impl CgroupPath {
    /// Reads an OCI `cgroupsPath`. An empty one is `<cid>`; the systemd form
    /// `slice:prefix:name` becomes `slice/prefix/name`, because the guest has
    /// no systemd to ask (protocol 4.11). A single component goes below a group
    /// of ours.
    ///
    /// # Errors
    /// [`CgroupError::Path`] when a component is empty, `.` or `..`, too long
    /// for a file name or has a control character, and for the root itself,
    /// which holds the agent and must never become a container's.
    pub fn parse(cgroups_path: &str, cid: &str) -> Result<Self, CgroupError> {
        let text = if cgroups_path.is_empty() {
            cid
        } else {
            cgroups_path
        };
        let refuse = |reason| {
            Err(CgroupError::Path {
                path: text.to_owned(),
                reason,
            })
        };
        let relative = text.trim_start_matches('/');
        // One trailing slash is how some hosts write a directory.
        let relative = relative.strip_suffix('/').unwrap_or(relative);
        if relative.is_empty() {
            return refuse("it names the root of the hierarchy");
        }
        for component in relative.split(['/', ':']) {
            match component {
                "" => return refuse("it has an empty component"),
                "." | ".." => return refuse("it has a relative component"),
                long if long.len() > 255 => return refuse("a component is longer than 255 bytes"),
                odd if odd.chars().any(char::is_control) => {
                    return refuse("it has a control character");
                }
                _ => {}
            }
        }
        // Room for the longest file name below it within PATH_MAX.
        if relative.len() > 3500 {
            return refuse("it is too long");
        }
        let path = relative.replace(':', "/");
        if path.contains('/') {
            return Ok(Self(path));
        }
        Ok(Self(format!("{ABOVE}/{path}")))
    }

    /// The path, without a leading slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The paths of the cgroups above it, outermost first, without the root of
    /// the hierarchy.
    pub(super) fn ancestors(&self) -> impl Iterator<Item = &str> {
        self.0.match_indices('/').map(|(at, _)| &self.0[..at])
    }
}

impl std::fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<String, CgroupError> {
        CgroupPath::parse(text, "c1").map(|p| p.as_str().to_owned())
    }

    #[test]
    fn the_forms_hosts_send() {
        assert_eq!(parse("").unwrap(), "keelson/c1");
        assert_eq!(parse("/kubepods/pod7/c1").unwrap(), "kubepods/pod7/c1");
        assert_eq!(parse("k8s.io/c1").unwrap(), "k8s.io/c1");
        assert_eq!(parse("///c1/").unwrap(), "keelson/c1");
        assert_eq!(parse("keelson").unwrap(), "keelson/keelson");
        assert_eq!(
            parse("pod.slice:cri-containerd:c1").unwrap(),
            "pod.slice/cri-containerd/c1"
        );
        assert_eq!(parse("/a..b/...").unwrap(), "a..b/...");
    }

    #[test]
    fn what_is_refused() {
        for bad in [
            "/", "//", "/..", "a/../b", "a//b", "a/./b", "a::b", ":a", "a/b\0", "a\nb", "..:a",
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.is_bad_input(), "{bad}");
        }
        assert!(parse(&"x".repeat(256)).is_err());
        assert!(parse(&"x/".repeat(2000)).is_err());
        assert!(CgroupPath::parse("", "").is_err());
    }

    #[test]
    fn ancestors_are_outermost_first() {
        let path = CgroupPath::parse("/a/b/c", "x").unwrap();
        assert_eq!(path.ancestors().collect::<Vec<_>>(), ["a", "a/b"]);
        let flat = CgroupPath::parse("", "x").unwrap();
        assert_eq!(flat.ancestors().collect::<Vec<_>>(), ["keelson"]);
    }

    proptest::proptest! {
        #[test]
        fn a_parsed_path_stays_below_the_root(text in "\\PC{0,40}", cid in "[a-z]{1,8}") {
            if let Ok(path) = CgroupPath::parse(&text, &cid) {
                proptest::prop_assert!(path.ancestors().count() > 0);
                for part in path.as_str().split('/') {
                    proptest::prop_assert!(!part.is_empty() && part != "." && part != "..");
                }
            }
        }
    }
}
