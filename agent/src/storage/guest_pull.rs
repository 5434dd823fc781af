// SPDX-License-Identifier: Apache-2.0
//! `image_guest_pull`: a container's root from an image that is pulled in the
//! guest, by the confidential-data-hub; a sandbox's from the guest's own pause
//! image (protocol 5.8). Wherever the host wants it, it lies in the bundle.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use serde_json::Value;

use super::hub_mount::{claim_place, expect_mounted};
use super::mount::{make_dir, open_target};
use super::plan::{Action, Claim, Ready};
use super::undo::{Step, Undo};
use super::{Driver, Environment, StorageError};
use crate::confidential::pause::{self, PauseImage};

/// The driver's name, and that of the option with its JSON.
pub const NAME: &str = "image_guest_pull";

/// The most that the JSON may be: image labels are in it.
const LONGEST: usize = 64 << 10;

pub(super) struct GuestPull;

impl Driver for GuestPull {
    fn name(&self) -> &'static str {
        NAME
    }

    /// Two containers never share one, and none is kept, whatever the host says.
    fn place(&self, claim: &Claim<'_>) -> PathBuf {
        claim.bundle.unwrap_or(Path::new("")).join("rootfs")
    }

    fn may_be_shared(&self) -> bool {
        false
    }

    fn plan(&self, claim: &Claim<'_>) -> Result<Box<dyn Action>, StorageError> {
        let Some(bundle) = claim.bundle else {
            return Err(claim.refuse("driver", NAME, "only a container has an image"));
        };
        let bundle = bundle.to_owned();
        if is_sandbox(claim)? {
            return Ok(Box::new(Pause { bundle }));
        }
        let image = claim.source();
        if image.is_empty() || image.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(claim.refuse("source", image, "it is no image reference"));
        }
        Ok(Box::new(Pulled {
            image: image.to_owned(),
            bundle,
        }))
    }
}

fn is_sandbox(claim: &Claim<'_>) -> Result<bool, StorageError> {
    let refuse = |text, reason| claim.refuse("driver_options", text, reason);
    let text = claim
        .note(NAME)
        .ok_or_else(|| refuse("", "image_guest_pull is needed"))?;
    if text.len() > LONGEST {
        return Err(refuse(text, "image_guest_pull is too long"));
    }
    let parsed: Value =
        serde_json::from_str(text).map_err(|_| refuse(text, "image_guest_pull is no JSON"))?;
    let metadata = parsed["metadata"].as_object();
    let metadata = metadata.ok_or_else(|| refuse(text, "image_guest_pull has no metadata"))?;
    Ok(pause::is_sandbox(|key| metadata.get(key)?.as_str()))
}

#[derive(Debug)]
struct Pulled {
    image: String,
    bundle: PathBuf,
}

#[async_trait]
impl Action for Pulled {
    async fn ask(
        &self,
        place: &Path,
        _: &Ready,
        environment: &Environment,
        undo: &mut Undo,
    ) -> Result<(), StorageError> {
        let Environment { hub, late, .. } = environment;
        claim_place(&self.bundle, place, late, undo).await?;
        let asked = hub.pull_image(&self.image, &self.bundle);
        let mut undo = undo.clone();
        // The bundle is gone by then, and the hub makes it anew.
        undo.push(Step::RemoveFile(self.bundle.join("config.json")));
        late.expect(place, asked, undo).await
    }

    fn run(
        &self,
        place: &Path,
        _: &Ready,
        _: &Environment,
        _: &mut Undo,
    ) -> Result<(), StorageError> {
        expect_mounted(place)
    }
}

#[derive(Debug)]
struct Pause {
    bundle: PathBuf,
}

impl Action for Pause {
    fn run(
        &self,
        place: &Path,
        _: &Ready,
        _: &Environment,
        undo: &mut Undo,
    ) -> Result<(), StorageError> {
        let image = PauseImage::open()?;
        let rootfs = make_dir(place, undo)?;
        let bundle = open_target(&self.bundle).map_err(StorageError::at("open", &self.bundle))?;
        // What is copied goes with the bundle.
        Ok(image.copy(&bundle, &rootfs)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::StoragePlan;
    use super::*;
    use protocols::agent::Storage;

    fn plan(source: &str, json: Option<&str>) -> Result<StoragePlan, StorageError> {
        let storage = Storage {
            driver: NAME.into(),
            source: source.into(),
            fstype: "overlay".into(),
            mount_point: "/run/elsewhere".into(),
            driver_options: json.iter().map(|json| format!("{NAME}={json}")).collect(),
            ..Storage::default()
        };
        StoragePlan::from_wire(&storage, Some(Path::new("/run/kata-containers/c1")))
    }

    const CONTAINER: &str = r#"{"metadata":{"io.kubernetes.cri.container-type":"container"}}"#;
    const SANDBOX: &str = r#"{"metadata":{"io.kubernetes.cri-o.ContainerType":"sandbox"}}"#;

    #[test]
    fn the_root_lies_in_the_bundle() {
        for (source, json) in [("quay.io/a/b:c@sha256:0", CONTAINER), ("pause", SANDBOX)] {
            let plan = plan(source, Some(json)).unwrap();
            let root = Path::new("/run/kata-containers/c1/rootfs");
            assert_eq!(plan.mount_point(), root);
        }
        let action = format!("{:?}", plan("pause", Some(SANDBOX)).unwrap().action);
        assert!(action.starts_with("Pause"));
    }

    #[test]
    fn claims_that_are_no_json_are_refused() {
        let deep = format!(r#"{{"metadata":{}{}}}"#, "[".repeat(5000), "]".repeat(5000));
        let long = format!(r#"{{"metadata":{{"x":"{}"}}}}"#, "x".repeat(LONGEST));
        for bad in [
            "",
            "x",
            "[]",
            "{}",
            r#"{"metadata":[]}"#,
            "\u{0}",
            &deep,
            &long,
        ] {
            assert!(
                plan("a", Some(bad)).unwrap_err().is_bad_input(),
                "{bad:.40}"
            );
        }
        assert!(plan("a", None).unwrap_err().is_bad_input());
        // Words that mean nothing here are let be.
        for odd in [
            r#"{"metadata":{"io.kubernetes.cri.container-type":[7]}}"#,
            r#"{"metadata":{},"x":1}"#,
        ] {
            assert!(plan("a", Some(odd)).is_ok());
        }
        for image in ["", "a b", "a\nb", "a\u{7f}"] {
            assert!(plan(image, Some(CONTAINER)).unwrap_err().is_bad_input());
        }
    }
}
