// SPDX-License-Identifier: Apache-2.0
//! What a hostile container is kept from, told by what it would gain; the weaknesses of others that a story is about are named with it.
//!
//! Every story also does the allowed thing next to the forbidden one, so that none can pass because nothing ran.

mod disks;
mod links;
mod mounts;
mod process;

use tests::container::Builder;
use tests::facts::Facts;
use tests::rootfs::PROBE;
use tests::{Container, Output, spec};

/// What a kernel says to one who may not.
const REFUSED: [&str; 3] = ["not permitted", "ermission denied", "Invalid argument"];

/// Starts a container that only sleeps.
async fn start(builder: Builder) -> Container {
    builder.args(&["sleep", "100000"]).start().await
}

/// The probe in a container, with the capabilities that its first process has.
async fn probe(container: &Container, args: &[&str]) -> Facts {
    let args = [&[PROBE], args].concat();
    let probe = container.exec(&args).process(|p| p.Capabilities.clear());
    probe.run().await.facts()
}

/// A script in a container, with the capabilities that its first process has.
async fn script(container: &Container, text: &str) -> Output {
    let shell = container.exec(&["sh", "-c", text]);
    shell.process(|p| p.Capabilities.clear()).run().await
}

/// The default capabilities and these.
fn default_and(more: &[&'static str]) -> Vec<&'static str> {
    [spec::DEFAULT_CAPABILITIES.as_slice(), more].concat()
}

/// A root of the story's own in the guest, spoilt by `spoil` (with the root as `$r`).
async fn spoilt_root(guest: &Container, name: &str, spoil: &str) -> String {
    // Not in /tmp, where the guest lets no device be opened.
    let path = format!("/opt/{name}");
    let make =
        format!("r=/mnt{path}; rm -rf $r; cp -a /mnt/opt/image $r && cd $r && {{ {spoil}; }}");
    guest.sh(&make).await.ok();
    path
}
