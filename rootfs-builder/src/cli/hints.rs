// SPDX-License-Identifier: Apache-2.0
//! What a failure looks like: the error, its causes, and hints at what the user can do.

use std::io::{self, Write};

use guest_kernel::host::Missing;

use crate::assemble::{AssembleError, RootError};
use crate::base::BaseError;
use crate::base::debian::DebianError;
use crate::build::BuildError;
use crate::cache::Cache;
use crate::definition::DefinitionError;
use crate::definition::osbuilder::OsbuilderError;
use crate::kata::KataError;
use crate::run::guest_image::GuestImageError;
use crate::setup::SetupError;
use crate::toolchain::ToolchainError;

/// Tells a failure, its causes and what can be done about it on stderr.
pub fn complain(error: &anyhow::Error) {
    let mut text = format!("error: {error}\n");
    for cause in error.chain().skip(1) {
        text.push_str(&format!("  caused by: {cause}\n"));
    }
    for hint in hints(error) {
        text.push_str(&format!("hint: {hint}\n"));
    }
    // Where there is no stderr there is nobody to tell.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// What the user can do about an error.
fn hints(error: &anyhow::Error) -> Vec<String> {
    for cause in error.chain() {
        if let Some(SetupError::Missing { missing, commands }) = cause.downcast_ref() {
            return install_hints(missing, commands.clone());
        }
        if let Some(missing) = cause.downcast_ref::<Missing>() {
            return Cache::open()
                .map(|cache| install_hints(missing, missing.commands(&cache)))
                .unwrap_or_default();
        }
        if let Some(ToolchainError::NoRoute {
            target, missing, ..
        }) = cause.downcast_ref()
        {
            let mut hints = Cache::open()
                .map(|cache| install_hints(missing, missing.commands(&cache)))
                .unwrap_or_default();
            hints.push(format!(
                "or install rustup (https://rustup.rs) and run: rustup target add {target}"
            ));
            return hints;
        }
        if let Some(DebianError::Command(_)) = debian_error(cause) {
            return debian_hints(guest_kernel::host::is_root());
        }
        if let Some(hint) = own_hint(cause) {
            return vec![hint];
        }
        if let Some(ToolchainError::NoWorkspace { .. }) = cause.downcast_ref() {
            return vec![
                "give the guest binary with --binary, or work inside the source tree".to_owned(),
            ];
        }
    }
    Vec::new()
}

/// The hint of an error that knows one itself, or that one sentence helps.
fn own_hint(cause: &(dyn std::error::Error + 'static)) -> Option<String> {
    if let Some(error) = cause.downcast_ref::<DefinitionError>() {
        return error.hint();
    }
    if let Some(GuestImageError::Unknown { .. }) = cause.downcast_ref() {
        let hint = "an archive or OCI layout can be the container's root: --rootfs; a guest's root is built with --format initramfs, disk or directory";
        return Some(hint.to_owned());
    }
    if let Some(error) = cause.downcast_ref::<OsbuilderError>() {
        return error.hint().map(str::to_owned);
    }
    let hint = match (
        cause.downcast_ref(),
        cause.downcast_ref(),
        cause.downcast_ref(),
    ) {
        (Some(RootError::NoShell { .. }), ..) => {
            "install busybox-static, or take a base with a shell: --base debian"
        }
        (_, Some(BuildError::NotEmpty { .. }), _) => {
            "remove it, or say another place with --output"
        }
        (.., Some(KataError::NoManifest { .. })) => {
            "copy the image's .manifest.json beside it, or build the image again"
        }
        (.., Some(KataError::Format { .. })) => {
            "build one with --format initramfs or --format disk"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}

/// The failure of a Debian base inside the errors that pass it on as it is, and so do not show in a chain of causes.
fn debian_error<'a>(cause: &'a (dyn std::error::Error + 'static)) -> Option<&'a DebianError> {
    let base = match cause.downcast_ref() {
        Some(AssembleError::Base(base)) => Some(base),
        _ => cause.downcast_ref(),
    };
    match base {
        Some(BaseError::Debian(error)) => Some(error),
        _ => cause.downcast_ref(),
    }
}

/// Without root's rights mmdebstrap needs a user namespace, which hosts close in several ways.
fn debian_hints(is_root: bool) -> Vec<String> {
    let mut hints = Vec::new();
    if !is_root {
        hints.push("user namespaces must be open to you, with a range of ids in /etc/subuid and /etc/subgid".to_owned());
    }
    hints.push(
        "any OCI image layout, `docker save` archive or directory can be the root instead"
            .to_owned(),
    );
    hints
}

fn install_hints(missing: &Missing, commands: Vec<String>) -> Vec<String> {
    let mut hints: Vec<String> = commands
        .into_iter()
        .map(|command| format!("run: {command}"))
        .collect();
    let by_setup = guest_kernel::host::is_root() || missing.packages().is_empty();
    if by_setup {
        hints.push("or let it be done: --setup, or the verb setup".to_owned());
    }
    hints
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_kernel::command::CommandError;
    use guest_kernel::host::Need;

    #[test]
    fn what_is_missing_comes_with_its_commands() {
        let missing = Missing {
            needs: vec![Need::program("flex", "flex", "to build")],
        };
        let commands = vec!["apt-get install flex".to_owned()];
        let error =
            anyhow::Error::from(SetupError::Missing { missing, commands }).context("Cannot go on");
        assert_eq!(hints(&error)[0], "run: apt-get install flex");
        assert!(hints(&anyhow::anyhow!("other")).is_empty());
    }

    #[test]
    fn a_failed_debian_is_found_inside_what_passes_it_on() {
        let start = |source| CommandError::Start {
            program: "mmdebstrap".to_owned(),
            source,
        };
        let failed = || DebianError::from(start(io::ErrorKind::NotFound.into()));
        for error in [
            anyhow::Error::from(AssembleError::from(BaseError::from(failed()))),
            anyhow::Error::from(BaseError::from(failed())),
            anyhow::Error::from(failed()).context("Cannot go on"),
        ] {
            assert!(
                hints(&error)
                    .iter()
                    .any(|hint| hint.contains("docker save")),
                "{error:#}"
            );
        }
    }
}
