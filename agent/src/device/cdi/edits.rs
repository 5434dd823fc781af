// SPDX-License-Identifier: Apache-2.0
//! What a CDI file changes in a container's specification: `containerEdits`
//! with `env`, `deviceNodes`, `mounts`, `hooks` and `additionalGids` (CDI
//! specification). What else may be in there is passed over.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};
use oci_spec::runtime::{Hook, Mount, Spec};
use serde_json::Value;

use super::CdiError;
use crate::device::{Extra, Node, NodeKind, spec};

/// Applies one set of edits; answers with the nodes that it added.
pub(super) fn apply(spec: &mut Spec, edits: &Value) -> Result<Vec<Extra>, CdiError> {
    for entry in list(edits, "env")? {
        let entry = entry.as_str().filter(|entry| entry.contains('='));
        let entry = entry.ok_or_else(|| refused("env", "", "it is no assignment"))?;
        set_env(spec, entry);
    }
    let owner = user(spec);
    let mut nodes = Vec::new();
    for value in list(edits, "deviceNodes")? {
        nodes.push(node(value, owner)?);
    }
    spec::add(spec, &nodes);
    for value in list(edits, "mounts")? {
        add_mount(spec, value)?;
    }
    for value in list(edits, "hooks")? {
        add_hook(spec, value)?;
    }
    for value in list(edits, "additionalGids")? {
        let gid = value.as_u64().and_then(|gid| u32::try_from(gid).ok());
        let gid = gid.ok_or_else(|| refused("additionalGids", "", "it is no id"))?;
        if let Some(process) = spec.process_mut() {
            let gids = process
                .user_mut()
                .additional_gids_mut()
                .get_or_insert_default();
            if !gids.contains(&gid) {
                gids.push(gid);
            }
        }
    }
    Ok(nodes)
}

fn refused(field: &'static str, object: &str, reason: &'static str) -> CdiError {
    CdiError::Edit {
        field,
        object: object.chars().take(200).collect(),
        reason,
    }
}

/// A list, empty where there is none.
fn list<'a>(value: &'a Value, field: &'static str) -> Result<&'a [Value], CdiError> {
    match value.get(field) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(list)) => Ok(list),
        Some(_) => Err(refused(field, "", "it is no list")),
    }
}

/// A text, empty where there is none.
fn text<'a>(value: &'a Value, field: &'static str) -> Result<&'a str, CdiError> {
    match value.get(field) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(refused(field, "", "it is no text")),
    }
}

fn texts(value: &Value, field: &'static str) -> Result<Vec<String>, CdiError> {
    let all = list(value, field)?.iter();
    all.map(|text| text.as_str().map(str::to_owned))
        .collect::<Option<_>>()
        .ok_or_else(|| refused(field, "", "it is no list of texts"))
}

fn number(value: &Value, field: &'static str) -> Result<Option<u32>, CdiError> {
    match value.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64().map(u32::try_from) {
            Some(Ok(number)) => Ok(Some(number)),
            _ => Err(refused(field, "", "it is no number")),
        },
    }
}

fn absolute<'a>(value: &'a Value, field: &'static str) -> Result<&'a str, CdiError> {
    let path = text(value, field)?;
    match path.starts_with('/') && !path.contains('\0') {
        true => Ok(path),
        false => Err(refused(field, path, "it is no absolute path")),
    }
}

fn set_env(spec: &mut Spec, entry: &str) {
    let Some(process) = spec.process_mut() else {
        return;
    };
    let env = process.env_mut().get_or_insert_default();
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let wanted = name(entry);
    match env.iter_mut().find(|other| name(other) == wanted) {
        Some(other) => *other = entry.to_owned(),
        None => env.push(entry.to_owned()),
    }
}

/// Who owns nodes that say nothing of it: the container's user.
fn user(spec: &Spec) -> (u32, u32) {
    let process = spec.process().as_ref();
    process.map_or((0, 0), |process| {
        (process.user().uid(), process.user().gid())
    })
}

/// A device node, and how it may be used. What is not said of it is as the
/// guest's own node has it.
fn node(value: &Value, owner: (u32, u32)) -> Result<Extra, CdiError> {
    let path = absolute(value, "path")?;
    let source = match text(value, "hostPath")? {
        "" => path,
        _ => absolute(value, "hostPath")?,
    };
    let kind = match text(value, "type")? {
        "" => None,
        "b" => Some(NodeKind::Block),
        "c" | "u" => Some(NodeKind::Char),
        _ => return Err(refused("type", path, "it is none of b, c, u")),
    };
    let numbers = (number(value, "major")?, number(value, "minor")?);
    let (uid, gid) = (number(value, "uid")?, number(value, "gid")?);
    let mode = number(value, "fileMode")?;
    let access = match text(value, "permissions")? {
        "" => "rwm",
        letters if letters.bytes().all(|b| b"rwm".contains(&b)) => letters,
        _ => return Err(refused("permissions", path, "they are none of r, w, m")),
    };
    let mut node = match (kind, numbers) {
        (Some(kind), (Some(major), minor)) => Node {
            path: PathBuf::new(),
            kind,
            major,
            minor: minor.unwrap_or(0),
            mode: 0,
            uid: 0,
            gid: 0,
        },
        _ => existing(Path::new(source))?,
    };
    if kind.is_some_and(|kind| kind != node.kind) {
        return Err(refused("type", path, "the guest's device has another one"));
    }
    node.path = path.into();
    node.mode = mode.unwrap_or(node.mode) & 0o7777;
    node.uid = uid.unwrap_or(owner.0);
    node.gid = gid.unwrap_or(owner.1);
    Ok((node, access.to_owned()))
}

/// A device of the guest, by its node.
fn existing(path: &Path) -> Result<Node, CdiError> {
    let failed = |source| CdiError::File {
        path: path.to_owned(),
        source,
    };
    let metadata = fs::metadata(path).map_err(failed)?;
    let kind = metadata.file_type();
    let kind = match (kind.is_block_device(), kind.is_char_device()) {
        (true, _) => NodeKind::Block,
        (_, true) => NodeKind::Char,
        _ => {
            let path = path.display().to_string();
            return Err(refused("hostPath", &path, "it is no device"));
        }
    };
    let device = metadata.rdev();
    Ok(Node {
        path: path.to_owned(),
        kind,
        // The kernel has 12 bits for the one and 20 for the other.
        major: major(device) as u32,
        minor: minor(device) as u32,
        mode: metadata.mode() & 0o7777,
        uid: 0,
        gid: 0,
    })
}

fn add_mount(spec: &mut Spec, value: &Value) -> Result<(), CdiError> {
    let destination = absolute(value, "containerPath")?;
    let source = absolute(value, "hostPath")?;
    let typ = match text(value, "type")? {
        "" => "bind",
        typ => typ,
    };
    let mut mount = Mount::default();
    mount
        .set_destination(destination.into())
        .set_source(Some(source.into()))
        .set_typ(Some(typ.to_owned()))
        .set_options(Some(texts(value, "options")?));
    let all = spec.mounts_mut().get_or_insert_default();
    all.retain(|other| other.destination() != mount.destination());
    // Before what is mounted below it.
    let below = |other: &Mount| other.destination().starts_with(destination);
    let at = all.iter().position(below).unwrap_or(all.len());
    all.insert(at, mount);
    Ok(())
}

fn add_hook(spec: &mut Spec, value: &Value) -> Result<(), CdiError> {
    let mut hook = Hook::default();
    hook.set_path(absolute(value, "path")?.into())
        .set_args(Some(texts(value, "args")?))
        .set_env(Some(texts(value, "env")?))
        .set_timeout(number(value, "timeout")?.map(i64::from));
    let hooks = spec.hooks_mut().get_or_insert_default();
    #[allow(deprecated, reason = "CDI files may still have prestart hooks")]
    let list = match text(value, "hookName")? {
        "prestart" => hooks.prestart_mut(),
        "createRuntime" => hooks.create_runtime_mut(),
        "createContainer" => hooks.create_container_mut(),
        "startContainer" => hooks.start_container_mut(),
        "poststart" => hooks.poststart_mut(),
        "poststop" => hooks.poststop_mut(),
        other => return Err(refused("hookName", other, "there is no such hook")),
    };
    list.get_or_insert_default().push(hook);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(spec: &mut Spec, edits: &str) -> Result<Vec<Extra>, CdiError> {
        apply(spec, &serde_json::from_str(edits).unwrap())
    }

    #[test]
    fn everything_that_can_be_edited() {
        let mut spec = Spec::default();
        spec.process_mut()
            .as_mut()
            .unwrap()
            .set_env(Some(vec!["A=0".to_owned(), "AB=0".to_owned()]));
        let nodes = applied(
            &mut spec,
            r#"{
                "env": ["A=1", "B=2=3"],
                "deviceNodes": [
                    {"path": "/dev/gpu0", "hostPath": "/dev/null", "permissions": "rw"},
                    {"path": "/dev/disk", "type": "b", "major": 254, "minor": 16, "uid": 7, "fileMode": 416}
                ],
                "mounts": [{"hostPath": "/usr/lib/gpu", "containerPath": "/proc", "options": ["ro", "nosuid"]}],
                "hooks": [{"hookName": "createContainer", "path": "/bin/hook", "args": ["hook", "x"], "timeout": 3}],
                "additionalGids": [44, 44],
                "intelRdt": {}
            }"#,
        );
        let nodes = nodes.unwrap();
        let [(null, _), (disk, _)] = &nodes[..] else {
            panic!("{nodes:?}");
        };
        assert_eq!((null.major, null.minor, null.mode), (1, 3, 0o666));
        assert_eq!((disk.major, disk.uid, disk.mode), (254, 7, 0o640));
        let process = spec.process().as_ref().unwrap();
        assert_eq!(process.env().as_ref().unwrap(), &["A=1", "AB=0", "B=2=3"]);
        let gids = process.user().additional_gids();
        assert_eq!(gids.as_deref(), Some(&[44][..]));
        let linux = spec.linux().as_ref().unwrap();
        let paths = linux.devices().iter().flatten();
        let paths: Vec<_> = paths.map(|d| d.path().to_str().unwrap()).collect();
        assert_eq!(paths[paths.len() - 2..], ["/dev/gpu0", "/dev/disk"]);
        let rules = linux.resources().as_ref().unwrap().devices();
        let rules: Vec<_> = rules.iter().flatten().map(ToString::to_string).collect();
        assert_eq!(rules[rules.len() - 2..], ["c 1:3 rw", "b 254:16 rwm"]);
        let mounts = spec.mounts().as_ref().unwrap();
        let places = mounts
            .iter()
            .filter(|m| m.destination() == Path::new("/proc"));
        let mount = places.collect::<Vec<_>>();
        assert_eq!(mount.len(), 1);
        assert_eq!(mount[0].typ().as_deref(), Some("bind"));
        let hooks = spec.hooks().as_ref().unwrap().create_container();
        let hook = &hooks.as_ref().unwrap()[0];
        assert_eq!(hook.timeout(), Some(3));
    }

    #[test]
    fn mounts_lie_on_what_is_above_them() {
        let mut spec = Spec::default();
        spec.set_mounts(None);
        for place in ["/x/y/z", "/w", "/x/y", "/x/yy", "/x/y/z"] {
            let edits =
                format!(r#"{{"mounts": [{{"hostPath": "/a", "containerPath": "{place}"}}]}}"#);
            applied(&mut spec, &edits).unwrap();
        }
        let mounts = spec.mounts().as_ref().unwrap().iter();
        let places: Vec<_> = mounts.map(|m| m.destination().to_str().unwrap()).collect();
        assert_eq!(places, ["/x/y", "/w", "/x/yy", "/x/y/z"]);
    }

    #[test]
    fn hostile_edits_are_refused_by_field() {
        for (edits, field) in [
            (r#"{"env": "A=1"}"#, "env"),
            (r#"{"env": [1]}"#, "env"),
            (r#"{"env": ["A"]}"#, "env"),
            (r#"{"deviceNodes": [7]}"#, "path"),
            (r#"{"deviceNodes": [{"path": "relative"}]}"#, "path"),
            (r#"{"deviceNodes": [{"path": "/dev"}]}"#, "hostPath"),
            (
                r#"{"deviceNodes": [{"path": "/dev/null", "type": "b"}]}"#,
                "type",
            ),
            (
                r#"{"deviceNodes": [{"path": "/dev/x", "type": "p"}]}"#,
                "type",
            ),
            (
                r#"{"deviceNodes": [{"path": "/dev/x", "type": "c", "major": -1}]}"#,
                "major",
            ),
            (
                r#"{"deviceNodes": [{"path": "/dev/x", "type": "c", "major": 4294967296}]}"#,
                "major",
            ),
            (
                r#"{"deviceNodes": [{"path": "/dev/null", "permissions": "x"}]}"#,
                "permissions",
            ),
            (r#"{"mounts": [{"hostPath": "/a"}]}"#, "containerPath"),
            (
                r#"{"mounts": [{"hostPath": "a", "containerPath": "/a"}]}"#,
                "hostPath",
            ),
            (
                r#"{"mounts": [{"hostPath": "/a", "containerPath": "/a", "options": [1]}]}"#,
                "options",
            ),
            (
                r#"{"hooks": [{"hookName": "whenever", "path": "/a"}]}"#,
                "hookName",
            ),
            (r#"{"hooks": [{"hookName": "poststop"}]}"#, "path"),
            (r#"{"additionalGids": [-1]}"#, "additionalGids"),
        ] {
            let error = applied(&mut Spec::default(), edits).unwrap_err();
            let CdiError::Edit { field: named, .. } = &error else {
                panic!("{edits}: {error}");
            };
            assert_eq!(*named, field, "{edits}");
        }
        let absent = r#"{"deviceNodes": [{"path": "/dev/keelson-absent"}]}"#;
        let error = applied(&mut Spec::default(), absent).unwrap_err();
        assert!(matches!(error, CdiError::File { .. }));
    }
}
