// SPDX-License-Identifier: Apache-2.0
//! Package URLs: how tools that look for known flaws name a package. See the purl specification, types `deb` and `cargo`.

use crate::manifest::ManifestError;
use crate::manifest::dpkg::Stanza;
use crate::tree::Tree;

use super::crates::Crate;
use super::text;

/// Where os-release(5) lies; the first is usually a link to the second.
const RELEASE: [&str; 2] = ["etc/os-release", "usr/lib/os-release"];

/// Whose packages a root has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distribution {
    /// Its name for people.
    pub name: String,
    /// Its identifier.
    pub id: String,
    /// The release's code name.
    pub codename: Option<String>,
}

impl Distribution {
    /// What the tree says of itself; Debian, if nothing.
    pub fn of(tree: &Tree) -> Result<Distribution, ManifestError> {
        let mut release = String::new();
        for path in RELEASE {
            release.push_str(&text(tree, path)?.unwrap_or_default());
            release.push('\n');
        }
        let value = |name: &str| {
            let line = release
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
            Some(line.trim_matches(['"', '\'']).to_owned()).filter(|value| !value.is_empty())
        };
        let id = value("ID").unwrap_or_else(|| "debian".to_owned());
        Ok(Distribution {
            name: match &id[..] {
                "debian" => "Debian".to_owned(),
                _ => value("NAME").unwrap_or_else(|| id.clone()),
            },
            id,
            codename: value("VERSION_CODENAME"),
        })
    }
}

/// Text with all but unreserved letters percent-encoded.
pub fn encoded(text: &str) -> String {
    let letter = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(letter).collect()
}

/// As [`encoded`]; a purl leaves the colon, which Debian's versions have after their epoch.
fn component(text: &str) -> String {
    encoded(text).replace("%3A", ":")
}

/// The URL of a Debian package.
pub fn debian_purl(stanza: &Stanza, distribution: &Distribution) -> String {
    let mut purl = format!(
        "pkg:deb/{}/{}@{}?arch={}",
        component(&distribution.id.to_lowercase()),
        component(&stanza.package.to_lowercase()),
        component(&stanza.version),
        component(&stanza.architecture),
    );
    if let Some(codename) = &distribution.codename {
        purl.push_str(&format!("&distro={}", component(codename)));
    }
    purl
}

/// The URL of a crate.
pub fn cargo_purl(krate: &Crate) -> String {
    format!(
        "pkg:cargo/{}@{}",
        component(&krate.name),
        component(&krate.version)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Entry, Kind};

    #[test]
    fn versions_are_encoded_as_the_purl_specification_has_it() {
        let stanza = Stanza {
            package: "libstdc++6".to_owned(),
            architecture: "amd64".to_owned(),
            version: "1:2.4.47-2+b1~x".to_owned(),
            ..Stanza::default()
        };
        let debian = Distribution::of(&Tree::default()).unwrap();
        assert_eq!(
            debian_purl(&stanza, &debian),
            "pkg:deb/debian/libstdc%2B%2B6@1:2.4.47-2%2Bb1~x?arch=amd64"
        );
    }

    #[test]
    fn a_root_says_whose_it_is() {
        let mut tree = Tree::default();
        let link = Entry::new(Kind::Symlink("../usr/lib/os-release".into()), 0o777);
        tree.insert(RELEASE[0], link).unwrap();
        let text = "NAME=\"Ubuntu\"\nVERSION_CODENAME=noble\nID=ubuntu\nVERSION_ID='24.04'\n";
        tree.insert(RELEASE[1], Entry::bytes(text, 0o644)).unwrap();
        let expected = Distribution {
            name: "Ubuntu".to_owned(),
            id: "ubuntu".to_owned(),
            codename: Some("noble".to_owned()),
        };
        assert_eq!(Distribution::of(&tree).unwrap(), expected);
    }
}
