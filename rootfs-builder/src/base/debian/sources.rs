// SPDX-License-Identifier: Apache-2.0
//! Where Debian's packages come from: the sources that the host itself uses, where it is a Debian.

use std::env;
use std::fs;
use std::path::PathBuf;

/// The host's own Debian, as far as it has one.
#[derive(Debug, Default)]
pub struct Host {
    /// Its release's code name.
    pub suite: Option<String>,
    lists: Vec<String>,
}

impl Host {
    /// Reads what the host says of itself.
    pub fn read() -> Host {
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
        let parts = fs::read_dir("/etc/apt/sources.list.d")
            .into_iter()
            .flatten()
            .flatten();
        files.extend(parts.map(|part| part.path()));
        files.sort();
        Host {
            suite: debian_suite(&release),
            lists: files
                .iter()
                .filter_map(|file| fs::read_to_string(file).ok())
                .collect(),
        }
    }

    /// Lines for the sources of `suite` that the host uses itself; empty if it uses none, which leaves mmdebstrap its default.
    pub fn sources(&self, suite: &str) -> String {
        let mut lines: Vec<String> = self
            .lists
            .iter()
            .flat_map(|text| parse_sources(text))
            .filter_map(|s| s.line(suite))
            .collect();
        lines.sort();
        lines.dedup();
        // Updates alone are no Debian.
        let complete = lines
            .iter()
            .any(|line| line.split_whitespace().any(|word| word == suite));
        if complete {
            lines.concat()
        } else {
            String::new()
        }
    }

    /// apt's settings inside: the host's proxy, if one is set in the environment, reaches apt by itself.
    pub fn apt_config(&self) -> String {
        let mut text =
            String::from("Acquire::Languages \"none\";\nAPT::Install-Recommends \"false\";\n");
        if env::var_os("CI").is_some() {
            text.push_str("Acquire::Retries \"3\";\n");
        }
        text
    }
}

/// The code name of a Debian, from os-release(5).
fn debian_suite(release: &str) -> Option<String> {
    let value = |name: &str| {
        let line = release
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
        Some(line.trim_matches('"').to_owned())
    };
    (value("ID")? == "debian").then(|| value("VERSION_CODENAME"))?
}

/// One source of packages, see sources.list(5).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Sources {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    signed_by: Option<String>,
    binary: bool,
}

impl Sources {
    /// Lines for what this source has of a Debian release: its own suite, its updates and its security suite, component main.
    fn line(&self, suite: &str) -> Option<String> {
        let ours = |name: &&String| {
            let rest = name.trim_end_matches('/').strip_prefix(suite);
            matches!(rest, Some("" | "-updates" | "-security"))
        };
        let suites: Vec<&String> = self.suites.iter().filter(ours).collect();
        if !self.binary || suites.is_empty() || !self.components.iter().any(|c| c == "main") {
            return None;
        }
        let option = self
            .signed_by
            .as_ref()
            .map(|key| format!("[signed-by={key}] "))
            .unwrap_or_default();
        let pairs = self
            .uris
            .iter()
            .flat_map(|uri| suites.iter().map(move |suite| (uri, suite)));
        Some(
            pairs
                .map(|(uri, suite)| format!("deb {option}{uri} {suite} main\n"))
                .collect(),
        )
    }
}

/// Reads either form of a sources file. What is not understood is left out: it is only a hint where to look first.
fn parse_sources(text: &str) -> Vec<Sources> {
    let deb822 = text
        .lines()
        .any(|line| line.to_ascii_lowercase().starts_with("uris:"));
    if deb822 {
        let kept: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        kept.join("\n")
            .split("\n\n")
            .filter_map(parse_stanza)
            .collect()
    } else {
        text.lines().filter_map(parse_one_line).collect()
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn parse_stanza(stanza: &str) -> Option<Sources> {
    let mut sources = Sources::default();
    for line in stanza.lines() {
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        match name.to_ascii_lowercase().as_str() {
            "types" => sources.binary = words(value).iter().any(|word| word == "deb"),
            "uris" => sources.uris = words(value),
            "suites" => sources.suites = words(value),
            "components" => sources.components = words(value),
            // A key written out in the stanza itself has no path; apt then falls back to its trusted keys.
            "signed-by" => {
                sources.signed_by = Some(value.trim().to_owned()).filter(|key| key.starts_with('/'))
            }
            "enabled" if value.trim().eq_ignore_ascii_case("no") => return None,
            _ => {}
        }
    }
    Some(sources)
}

fn parse_one_line(line: &str) -> Option<Sources> {
    let line = line.split('#').next()?.trim();
    let rest = line.strip_prefix("deb ")?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(inner) => inner.split_once(']')?,
        None => ("", rest),
    };
    let mut fields = words(rest).into_iter();
    let signed_by = options
        .split_whitespace()
        .find_map(|word| word.strip_prefix("signed-by="));
    Some(Sources {
        uris: vec![fields.next()?],
        suites: vec![fields.next()?],
        components: fields.collect(),
        signed_by: signed_by.map(str::to_owned),
        binary: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "Types: deb\n# a comment\nURIs: http://a.example/debian\nSuites: bookworm bookworm-updates\n\
        Components: main contrib\nSigned-By: /usr/share/keyrings/k.gpg\n\n\
        Types: deb-src\nURIs: http://b.example/debian\nSuites: bookworm\nComponents: main\n\n\
        Enabled: no\nTypes: deb\nURIs: http://c.example/debian\nSuites: bookworm\nComponents: main\n";

    fn host(lists: &[&str]) -> Host {
        Host {
            suite: None,
            lists: lists.iter().map(|&text| text.to_owned()).collect(),
        }
    }

    #[test]
    fn the_hosts_own_debian_is_taken_and_nothing_else() {
        let third = "deb https://packages.example.com/apt cloud-bookworm main\ndeb http://d.example bookworm stable # not Debian\n";
        let text = host(&[DEB822, third]).sources("bookworm");
        assert_eq!(
            text,
            "deb [signed-by=/usr/share/keyrings/k.gpg] http://a.example/debian bookworm main\n\
             deb [signed-by=/usr/share/keyrings/k.gpg] http://a.example/debian bookworm-updates main\n"
        );
    }

    #[test]
    fn one_line_sources_are_read() {
        let text = "deb [arch=amd64 signed-by=/k.gpg] http://a.example/debian trixie main non-free\n#deb http://x trixie main\n\
                    deb http://s.example/security trixie-security main\ndeb-src http://a.example/debian trixie main\n";
        assert_eq!(
            host(&[text]).sources("trixie"),
            "deb [signed-by=/k.gpg] http://a.example/debian trixie main\ndeb http://s.example/security trixie-security main\n"
        );
    }

    #[test]
    fn another_release_than_the_hosts_has_no_sources_here() {
        assert_eq!(host(&[DEB822]).sources("trixie"), "");
        assert_eq!(
            host(&["deb http://s.example trixie-security main\n"]).sources("trixie"),
            ""
        );
    }

    #[test]
    fn only_a_debian_has_a_suite() {
        assert_eq!(
            debian_suite("ID=debian\nVERSION_CODENAME=bookworm\n").as_deref(),
            Some("bookworm")
        );
        assert_eq!(
            debian_suite("ID=\"debian\"\nVERSION_CODENAME=\"trixie\"\n").as_deref(),
            Some("trixie")
        );
        assert_eq!(
            debian_suite("ID=ubuntu\nVERSION_CODENAME=noble\nID_LIKE=debian\n"),
            None
        );
        assert_eq!(debian_suite("ID=debian\n"), None);
    }
}
