// SPDX-License-Identifier: Apache-2.0
//! `9p`: a directory of the host's by its tag, from VMMs without virtio-fs.

use std::path::Path;

use super::mount::MountSpec;
use super::plan::{Action, Claim, Ready};
use super::undo::Undo;
use super::{Driver, Environment, StorageError};

pub(super) struct Plan9;

impl Driver for Plan9 {
    fn name(&self) -> &'static str {
        "9p"
    }

    fn plan(&self, claim: &Claim<'_>) -> Result<Box<dyn Action>, StorageError> {
        let spec = claim.mount_spec()?;
        if spec.fstype != "9p" {
            return Err(claim.refuse("fstype", &spec.fstype, "it is not 9p"));
        }
        // By descriptor or over the network it would not be the VM's host that it comes from.
        let mut words = spec.options.data.split(',');
        if words.any(|word| word.starts_with("trans=") && word != "trans=virtio") {
            let reason = "the host is reached by virtio only";
            return Err(claim.refuse("options", &spec.options.data, reason));
        }
        Ok(Box::new(Share(spec)))
    }
}

#[derive(Debug)]
struct Share(MountSpec);

impl Action for Share {
    fn run(
        &self,
        place: &Path,
        _: &Ready,
        _: &Environment,
        undo: &mut Undo,
    ) -> Result<(), StorageError> {
        self.0.mount(place, undo)
    }
}

#[cfg(test)]
mod tests {
    use super::super::StoragePlan;
    use protocols::agent::Storage;

    #[test]
    fn only_the_host_is_mounted() {
        let plan_of = |source: &str, options: &str, fstype: &str| {
            let storage = Storage {
                driver: "9p".into(),
                source: source.into(),
                fstype: fstype.into(),
                mount_point: "/run/x".into(),
                options: vec![options.into()],
                ..Storage::default()
            };
            StoragePlan::from_wire(&storage, None)
        };
        let plan = |options: &str, fstype: &str| plan_of("kataShared", options, fstype);
        assert!(plan("trans=virtio,version=9p2000.L,cache=mmap,nodev", "9p").is_ok());
        assert!(plan("nodev", "9p").is_ok());
        for (options, fstype) in [
            ("trans=tcp", "9p"),
            ("trans=fd,rfdno=3", "9p"),
            ("nodev", "nfs"),
        ] {
            assert!(
                plan(options, fstype).unwrap_err().is_bad_input(),
                "{options}"
            );
        }
        // What the door lets in, the kernel takes as a name; no device's tag is as long.
        for (length, taken) in [(4095, true), (4096, false)] {
            assert_eq!(plan_of(&"x".repeat(length), "", "9p").is_ok(), taken);
        }
    }
}
