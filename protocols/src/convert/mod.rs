// SPDX-License-Identifier: Apache-2.0

//! From the wire's OCI configuration to [`oci_spec::runtime`] types.
//!
//! The wire cannot say everything the OCI configuration can, so some rules hold throughout:
//!
//! - An empty string, list or map is unset. The defaults of `oci_spec` (a shell, default mounts, namespaces,
//!   masked paths …) never appear: what the host did not ask for is not there.
//! - A limit of 0 is unset; -1 is kept and means unlimited; other negative limits are errors.
//! - A word that belongs to a closed set (namespace type, capability, seccomp action …) must be a member of it.
//! - Nothing here looks at the guest: whether a path exists or a capability is known to the kernel is for later.
//!
//! This module never panics on what it is given, and changes nothing anywhere.

#[cfg(test)]
mod check;
mod field;
mod linux;
mod process;
mod resources;
mod seccomp;

pub use process::process_from_wire;
pub use resources::resources_from_wire;

use crate::oci;
use field::{list, map, non_zero, path, text};
use oci_spec::OciSpecError;
use oci_spec::runtime::{Hook, Hooks, Mount, Root, Spec};

/// What is wrong with a configuration. All of it is the sender's doing: INVALID_ARGUMENT on the wire.
///
/// `field` names message and field as in `proto/oci.proto`, e.g. `LinuxNamespace.Type`.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// A word that is not in the set its field allows.
    #[error("Field {field} has the unknown value \"{value}\"")]
    UnknownValue {
        /// Message and field.
        field: &'static str,
        /// The word, cut to a length fit for a message.
        value: String,
    },
    /// A number outside the range its field allows.
    #[error("Field {field} has the value {value}, which is out of range")]
    OutOfRange {
        /// Message and field.
        field: &'static str,
        /// The number.
        value: i128,
    },
    /// A process without a program to run.
    #[error("Field Process.Args is empty")]
    EmptyArgs,
    /// `oci_spec` did not accept a combination of values.
    #[error("Field {field} cannot be expressed")]
    Refused {
        /// Message and field.
        field: &'static str,
        /// Its reason.
        source: OciSpecError,
    },
}

/// Converts a whole container configuration.
///
/// The Windows and Solaris sections are left out. A process is optional, but one that is there needs arguments.
///
/// # Errors
///
/// See [`ConvertError`]; the first error found is returned.
pub fn spec_from_wire(wire: &oci::Spec) -> Result<Spec, ConvertError> {
    let process = wire.Process.as_ref().map(process_from_wire).transpose()?;
    let linux = wire
        .Linux
        .as_ref()
        .map(linux::linux_from_wire)
        .transpose()?;
    let mut spec = Spec::default();
    spec.set_version(wire.Version.clone())
        .set_root(wire.Root.as_ref().map(root))
        .set_mounts(list(&wire.Mounts, mount))
        .set_process(process)
        .set_hostname(text(&wire.Hostname))
        .set_hooks(wire.Hooks.as_ref().map(hooks))
        .set_annotations(map(&wire.Annotations))
        .set_linux(linux);
    Ok(spec)
}

fn root(wire: &oci::Root) -> Root {
    let mut root = Root::default();
    root.set_path(wire.Path.as_str().into())
        .set_readonly(Some(wire.Readonly));
    root
}

fn mount(wire: &oci::Mount) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(wire.destination.as_str().into())
        .set_typ(text(&wire.type_))
        .set_source(path(&wire.source))
        .set_options(list(&wire.options, String::clone));
    mount
}

fn hooks(wire: &oci::Hooks) -> Hooks {
    let mut hooks = Hooks::default();
    // Prestart is deprecated in favour of CreateRuntime, but hosts still send it.
    #[allow(deprecated)]
    hooks.set_prestart(list(&wire.Prestart, hook));
    hooks
        .set_create_runtime(list(&wire.CreateRuntime, hook))
        .set_create_container(list(&wire.CreateContainer, hook))
        .set_start_container(list(&wire.StartContainer, hook))
        .set_poststart(list(&wire.Poststart, hook))
        .set_poststop(list(&wire.Poststop, hook));
    hooks
}

fn hook(wire: &oci::Hook) -> Hook {
    let mut hook = Hook::default();
    hook.set_path(wire.Path.as_str().into())
        .set_args(list(&wire.Args, String::clone))
        .set_env(list(&wire.Env, String::clone))
        .set_timeout(non_zero(wire.Timeout.max(0)));
    hook
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::check::assert_unknown;
    use protobuf::MessageField;

    #[test]
    fn an_empty_spec_gets_no_defaults() {
        let spec = spec_from_wire(&oci::Spec::default()).unwrap();
        assert_eq!(spec.version(), "");
        assert!(spec.root().is_none() && spec.mounts().is_none() && spec.process().is_none());
        assert!(spec.hostname().is_none() && spec.domainname().is_none() && spec.hooks().is_none());
        assert!(spec.annotations().is_none() && spec.linux().is_none());
        assert!(spec.solaris().is_none() && spec.windows().is_none() && spec.vm().is_none());
    }

    fn namespace(typ: &str) -> Result<Spec, ConvertError> {
        let namespace = oci::LinuxNamespace {
            Type: typ.to_owned(),
            ..Default::default()
        };
        let linux = oci::Linux {
            Namespaces: vec![namespace],
            ..Default::default()
        };
        spec_from_wire(&oci::Spec {
            Linux: MessageField::some(linux),
            ..Default::default()
        })
    }

    #[test]
    fn a_long_unknown_value_is_cut_at_a_character() {
        let word = "ä".repeat(100_000) + "x";
        let result = namespace(&word);
        assert_unknown(result, "LinuxNamespace.Type", &"ä".repeat(32));
    }

    #[test]
    fn errors_read_well() {
        let result = namespace("foo");
        assert_eq!(
            result.unwrap_err().to_string(),
            "Field LinuxNamespace.Type has the unknown value \"foo\""
        );
    }

    fn wire_hook(path: &str) -> oci::Hook {
        oci::Hook {
            Path: path.to_owned(),
            ..Default::default()
        }
    }

    #[test]
    #[allow(deprecated)]
    fn bug_poststop_is_not_poststart() {
        let spec = spec_from_wire(&oci::Spec {
            Hooks: MessageField::some(oci::Hooks {
                Prestart: vec![wire_hook("/prestart")],
                Poststart: vec![wire_hook("/poststart")],
                Poststop: vec![wire_hook("/poststop")],
                CreateRuntime: vec![wire_hook("/createRuntime")],
                CreateContainer: vec![wire_hook("/createContainer")],
                StartContainer: vec![wire_hook("/startContainer")],
                ..Default::default()
            }),
            ..Default::default()
        })
        .unwrap();
        let hooks = spec.hooks().as_ref().unwrap();
        for (list, path) in [
            (hooks.prestart(), "/prestart"),
            (hooks.poststart(), "/poststart"),
            (hooks.poststop(), "/poststop"),
            (hooks.create_runtime(), "/createRuntime"),
            (hooks.create_container(), "/createContainer"),
            (hooks.start_container(), "/startContainer"),
        ] {
            let list = list.as_ref().unwrap();
            assert_eq!(list.len(), 1);
            assert_eq!(list[0].path().to_str(), Some(path));
            assert!(list[0].args().is_none() && list[0].env().is_none());
        }
    }

    #[test]
    fn only_positive_hook_timeouts_are_set() {
        for (sent, wanted) in [(0, None), (-1, None), (i64::MIN, None), (7, Some(7))] {
            let mut wire = wire_hook("/hook");
            wire.Timeout = sent;
            assert_eq!(hook(&wire).timeout(), wanted);
        }
    }

    #[test]
    fn mounts_keep_order_and_lose_empty_words() {
        let wire = |destination: &str, typ: &str| oci::Mount {
            destination: destination.to_owned(),
            type_: typ.to_owned(),
            ..Default::default()
        };
        let spec = spec_from_wire(&oci::Spec {
            Mounts: vec![wire("/b", "tmpfs"), wire("/a", "")],
            Root: MessageField::some(oci::Root {
                Path: "/rootfs".to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        })
        .unwrap();
        let mounts = spec.mounts().as_ref().unwrap();
        assert_eq!(mounts[0].destination().to_str(), Some("/b"));
        assert_eq!(mounts[0].typ().as_deref(), Some("tmpfs"));
        assert!(mounts[1].typ().is_none() && mounts[1].source().is_none());
        assert!(mounts[1].options().is_none());
        // The library's default root is read-only.
        let root = spec.root().as_ref().unwrap();
        assert_eq!(
            (root.path().to_str(), root.readonly()),
            (Some("/rootfs"), Some(false))
        );
    }
}
