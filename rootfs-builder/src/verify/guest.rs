// SPDX-License-Identifier: Apache-2.0
//! Checks whether a guest can start from what is in an image.

use guest_kernel::Arch;

use super::Check;
use crate::image::read::{Image, ItemKind, escape};

/// What is mounted over or written into before anything could make it on a root that cannot be written.
const MOUNT_POINTS: [&str; 7] = ["dev", "etc", "proc", "run", "sys", "tmp", "var"];
/// What makes an image an extension of a guest, and no guest.
const EXTENSION: &str = "etc/kata-extensions";

/// The checks; `arch` is the architecture that the image must be for, if that is known.
pub fn checks(image: &Image, arch: Option<Arch>) -> Vec<Check> {
    if image.listing.find(EXTENSION.as_bytes()).is_some() {
        let manifest = format!("{EXTENSION}/components.toml");
        return vec![match image.listing.find(manifest.as_bytes()) {
            Some((_, item)) if item.kind == ItemKind::File => {
                Check::ok("extension", format!("has /{manifest}"))
            }
            _ => Check::failed("extension", format!("has no /{manifest}")),
        }];
    }
    vec![init(image, arch), mount_points(image)]
}

fn init(image: &Image, arch: Option<Arch>) -> Check {
    let Some((name, _, program)) = image.init() else {
        return Check::failed(
            "init",
            "there is neither /init nor /sbin/init where the kernel looks",
        );
    };
    let Some(program) = program else {
        return Check::failed("init", format!("{name} is no program"));
    };
    let (found, wanted) = (program.arch, arch.map(Arch::name));
    if found.is_none() || wanted.is_some_and(|wanted| found != Some(wanted)) {
        let found = found.unwrap_or("another architecture");
        let wanted = wanted.unwrap_or("x86_64 or aarch64");
        return Check::failed("init", format!("{name} is for {found}, not for {wanted}"));
    }
    let kind = match &program.loader {
        None => "static".to_owned(),
        Some(loader) if image.listing.find(loader.as_bytes()).is_none() => {
            return Check::failed(
                "init",
                format!(
                    "{name} needs {}, which is not there",
                    escape(loader.as_bytes())
                ),
            );
        }
        Some(loader) => format!("loaded by {loader}"),
    };
    let version = program
        .version
        .map(|version| format!("keelson {version}, "));
    let (version, found) = (version.unwrap_or_default(), found.unwrap_or_default());
    Check::ok("init", format!("{name}: {version}{found}, {kind}"))
}

fn mount_points(image: &Image) -> Check {
    let is_there = |name: &&str| {
        let found = image.listing.find(name.as_bytes());
        found.is_some_and(|(_, item)| item.kind == ItemKind::Directory)
    };
    let missing: Vec<String> = MOUNT_POINTS
        .iter()
        .filter(|name| !is_there(name))
        .map(|name| format!("/{name}"))
        .collect();
    if missing.is_empty() {
        Check::ok("directories", "every mount point is there")
    } else {
        Check::failed("directories", format!("missing: {}", missing.join(" ")))
    }
}
