// SPDX-License-Identifier: Apache-2.0
//! The texts of configurations: TOML for Kata and containerd, YAML for Kubernetes.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::{Facts, KataError, Kind, Request, directory};
use crate::image::verity::Verity;

/// The drop-in of Kata's configuration. It overrides what it names and leaves the rest.
pub fn drop_in(request: &Request, facts: &Facts) -> Result<String, KataError> {
    let place = directory(request.handler.as_deref());
    let mut text = format!(
        "# Goes into {place}/config.d/, beside the configuration.toml that the handler uses.\n",
        place = place.display()
    );
    let image = string(&absolute(&request.image)?);
    if let Kind::Extension { name, verity } = &facts.kind {
        extension(
            &mut text,
            &request.hypervisor,
            name,
            &image,
            verity.as_ref(),
        );
        return Ok(text);
    }
    line(&mut text, &format!("[hypervisor.{}]", request.hypervisor));
    if let Some(kernel) = &request.kernel {
        line(
            &mut text,
            &format!("kernel = {}", string(&absolute(kernel)?)),
        );
    }
    match &facts.kind {
        Kind::Disk {
            filesystem,
            dax,
            verity,
        } => {
            line(&mut text, &format!("image = {image}"));
            // Kata refuses a configuration that has both.
            line(&mut text, "initrd = \"\"");
            line(&mut text, &format!("rootfs_type = \"{filesystem}\""));
            line(&mut text, &device(request, *dax && verity.is_none()));
            if let Some(verity) = verity {
                line(
                    &mut text,
                    "# Kata turns this into dm-mod.create= and root=/dev/dm-0.",
                );
                let params = string(&verity.params());
                line(&mut text, &format!("kernel_verity_params = {params}"));
            }
        }
        _ => {
            line(&mut text, &format!("initrd = {image}"));
            line(&mut text, "image = \"\"");
        }
    }
    if !facts.words.is_empty() {
        line(
            &mut text,
            "# In place of the words that the configuration gives.",
        );
        let words = string(&facts.words.join(" "));
        line(&mut text, &format!("kernel_params = {words}"));
    }
    Ok(text)
}

/// How the VM is offered the disk: mapped where the image can be.
fn device(request: &Request, mapped: bool) -> String {
    match (request.runtime_rs, mapped) {
        (true, true) => "vm_rootfs_driver = \"virtio-pmem\"".to_owned(),
        (true, false) => "vm_rootfs_driver = \"virtio-blk-pci\"".to_owned(),
        (false, mapped) => format!("disable_image_nvdimm = {}", !mapped),
    }
}

fn extension(
    text: &mut String,
    hypervisor: &str,
    name: &str,
    image: &str,
    verity: Option<&Verity>,
) {
    line(text, "# For Kata 4.1 or newer.");
    line(
        text,
        &format!("[[hypervisor.{hypervisor}.guest_extension_images]]"),
    );
    line(text, &format!("name = {}", string(name)));
    line(text, &format!("path = {image}"));
    // An empty text is what makes the guest mount one that is not measured.
    let params = verity.map(Verity::params).unwrap_or_default();
    line(text, &format!("verity_params = {}", string(&params)));
}

/// The RuntimeClass of a handler.
pub fn runtime_class(handler: &str) -> String {
    format!(
        "# kubectl apply -f -\napiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata:\n  name: {handler}\nhandler: {handler}\n"
    )
}

/// What containerd must know: the runtime, and a configuration that only this handler uses.
pub fn containerd(handler: &str) -> String {
    let place = directory(Some(handler));
    let (place, key) = (
        place.display(),
        "plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes",
    );
    format!(
        "# Into /etc/containerd/config.toml (version 3; in version 2 the plugin is io.containerd.grpc.v1.cri), with a copy of Kata's\n\
         # configuration as {place}/configuration.toml.\n\
         [{key}.{handler}]\n\
         runtime_type = \"io.containerd.kata.v2\"\n\
         privileged_without_host_devices = true\n\
         pod_annotations = [\"io.katacontainers.*\"]\n\
         \n\
         [{key}.{handler}.options]\n\
         ConfigPath = \"{place}/configuration.toml\"\n"
    )
}

fn line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

/// A configuration is read from anywhere.
fn absolute(path: &Path) -> Result<String, KataError> {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    absolute
        .into_os_string()
        .into_string()
        .map_err(|path| KataError::Path {
            path: PathBuf::from(path),
        })
}

/// A basic string of TOML.
fn string(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => {
                // Writing to a string cannot fail.
                let _ = write!(quoted, "\\u{:04X}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_text_is_read_back(text: String) {
            let table: toml::Table = toml::from_str(&format!("x = {}", string(&text))).unwrap();
            prop_assert_eq!(table["x"].as_str(), Some(&*text));
        }
    }
}
