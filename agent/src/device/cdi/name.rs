// SPDX-License-Identifier: Apache-2.0
//! Names of CDI devices, `vendor.com/class=device`, and where containers ask
//! for them. Owns the grammar (CDI specification, "Kind" and "Device").

use std::fmt;

use oci_spec::runtime::Spec;

use super::CdiError;

/// Annotations whose values are lists of devices.
const ANNOTATION: &str = "cdi.k8s.io/";
/// The variable in which an image or a host asks for devices.
const VARIABLE: &str = "VISIBLE_CDI_DEVICES=";
/// Says what a container is to the pod.
const CONTAINER_TYPE: &str = "io.katacontainers.pkg.oci.container_type";

/// More devices than any container asks for.
const MOST: usize = 256;
/// Longer than any name.
const LONGEST: usize = 255;

/// The full name of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CdiDevice {
    /// `vendor.com/class`.
    pub kind: String,
    /// Its name among those of its kind.
    pub name: String,
}

impl fmt::Display for CdiDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.name)
    }
}

impl CdiDevice {
    fn parse(text: &str) -> Result<Self, CdiError> {
        let refuse = |reason| refused(text, reason);
        let parts = text.split_once('=');
        let (kind, name) = parts.ok_or_else(|| refuse("it has no '='"))?;
        if text.len() > LONGEST {
            return Err(refuse("it is too long"));
        }
        if !is_kind(kind) {
            return Err(refuse("its kind is not VENDOR/CLASS"));
        }
        if !is_word(name, "_-.:", |first| first.is_ascii_alphanumeric()) {
            return Err(refuse("the device has no valid name"));
        }
        Ok(Self {
            kind: kind.to_owned(),
            name: name.to_owned(),
        })
    }
}

/// Whether the text is a vendor and a class.
pub(super) fn is_kind(text: &str) -> bool {
    let letter = |first: u8| first.is_ascii_alphabetic();
    text.split_once('/').is_some_and(|(vendor, class)| {
        is_word(vendor, "_-.", letter) && is_word(class, "_-.", letter)
    })
}

fn is_word(text: &str, others: &str, first: impl Fn(u8) -> bool) -> bool {
    let known = |b: &u8| b.is_ascii_alphanumeric() || others.as_bytes().contains(b);
    match text.as_bytes() {
        [one] => first(*one),
        [head, middle @ .., last] => {
            first(*head) && middle.iter().all(known) && last.is_ascii_alphanumeric()
        }
        [] => false,
    }
}

/// The devices that a container asks for, each once; none for the pod's own.
/// `visible` lets it ask by its environment too.
///
/// # Errors
/// [`CdiError::Name`].
pub fn requested(spec: &Spec, visible: bool) -> Result<Vec<CdiDevice>, CdiError> {
    let mut devices = Vec::new();
    let mut lists = Vec::new();
    for (key, list) in spec.annotations().iter().flatten() {
        if key == CONTAINER_TYPE && list == "pod_sandbox" {
            return Ok(devices);
        }
        if key.starts_with(ANNOTATION) {
            lists.push(format!("{key}\n{list}"));
        }
    }
    // The order of a map is none.
    lists.sort();
    for list in lists {
        let list = list.split_once('\n').map_or("", |(_, list)| list);
        for name in list.split(',') {
            add(&mut devices, name)?;
        }
    }
    if visible {
        of_environment(spec, &mut devices)?;
    }
    let mut once: Vec<CdiDevice> = Vec::new();
    for device in devices {
        if !once.contains(&device) {
            once.push(device);
        }
    }
    Ok(once)
}

fn add(devices: &mut Vec<CdiDevice>, name: &str) -> Result<(), CdiError> {
    if devices.len() == MOST {
        return Err(refused(name, "there are too many"));
    }
    devices.push(CdiDevice::parse(name)?);
    Ok(())
}

fn refused(text: &str, reason: &'static str) -> CdiError {
    CdiError::Name {
        text: text.chars().take(200).collect(),
        reason,
    }
}

/// `KIND=DEVICE[,DEVICE]`, joined by colons, of the last such variable.
fn of_environment(spec: &Spec, devices: &mut Vec<CdiDevice>) -> Result<(), CdiError> {
    let process = spec.process().as_ref();
    let env = process.and_then(|process| process.env().as_ref());
    let values = env.into_iter().flatten();
    let mut values = values.filter_map(|entry| entry.strip_prefix(VARIABLE));
    let value = values.next_back().unwrap_or_default();
    if ["", "none", "void"].contains(&value) {
        return Ok(());
    }
    let refuse = || {
        refused(
            value,
            "VISIBLE_CDI_DEVICES is a list of KIND=DEVICE[,DEVICE]",
        )
    };
    for entry in value.split(':') {
        let (kind, names) = entry.split_once('=').ok_or_else(refuse)?;
        for device in names.split(',') {
            let number = device.bytes().all(|b| b.is_ascii_digit()) && !device.is_empty();
            if !number && device != "all" {
                return Err(refuse());
            }
            add(devices, &format!("{kind}={device}"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::Process;
    use std::collections::HashMap;

    fn spec(annotations: &[(&str, &str)], env: &[&str]) -> Spec {
        let mut spec = Spec::default();
        let all = annotations
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        spec.set_annotations(Some(all.collect::<HashMap<_, _>>()));
        let mut process = Process::default();
        process.set_env(Some(env.iter().map(|&e| e.to_owned()).collect()));
        spec.set_process(Some(process));
        spec
    }

    fn names(spec: &Spec, visible: bool) -> Vec<String> {
        let devices = requested(spec, visible).unwrap();
        devices.iter().map(CdiDevice::to_string).collect()
    }

    #[test]
    fn devices_are_asked_for_by_annotations() {
        let asked = [
            ("cdi.k8s.io/b", "nvidia.com/gpu=1,nvidia.com/gpu=0"),
            ("cdi.k8s.io/a", "vendor.org/net_class=eth0:1.x"),
            ("cdi.k8s.io/c", "nvidia.com/gpu=1"),
            ("other/x", "nonsense"),
        ];
        assert_eq!(
            names(&spec(&asked, &[]), false),
            [
                "vendor.org/net_class=eth0:1.x",
                "nvidia.com/gpu=1",
                "nvidia.com/gpu=0"
            ]
        );
        let pod = [asked[0], (CONTAINER_TYPE, "pod_sandbox")];
        assert!(names(&spec(&pod, &[]), false).is_empty());
        assert!(names(&spec(&[], &[]), true).is_empty());
    }

    #[test]
    fn the_environment_counts_where_it_is_to() {
        let env = [
            "VISIBLE_CDI_DEVICES=bad",
            "VISIBLE_CDI_DEVICES=a.b/c=0,1:d/e=all",
        ];
        assert!(names(&spec(&[], &env), false).is_empty());
        let expected = ["a.b/c=0", "a.b/c=1", "d/e=all"];
        assert_eq!(names(&spec(&[], &env), true), expected);
        for nothing in ["", "none", "void"] {
            let env = [format!("VISIBLE_CDI_DEVICES={nothing}")];
            assert!(names(&spec(&[], &[&env[0]]), true).is_empty());
        }
        for bad in ["a/b", "a/b=", "a/b=x", "a/b=-1", "a/b=0:", "=0", "a=0"] {
            let env = [format!("VISIBLE_CDI_DEVICES={bad}")];
            assert!(requested(&spec(&[], &[&env[0]]), true).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_have_a_grammar() {
        for bad in [
            "", "gpu", "a/b", "a/b=", "/b=c", "a/=c", "1a/b=c", "a-/b=c", "a/b_=c", "a/b=-c",
            "a/b=c-", "a/b=c d", "a/b/c=d", "a/b=../x",
        ] {
            let asked = [("cdi.k8s.io/x", bad)];
            assert!(requested(&spec(&asked, &[]), false).is_err(), "{bad:?}");
        }
        let many: Vec<_> = (0..257).map(|n| format!("a/b={n}")).collect();
        let asked = [("cdi.k8s.io/x", many.join(","))];
        let asked = asked.each_ref().map(|(key, value)| (*key, value.as_str()));
        assert!(requested(&spec(&asked, &[]), false).is_err());
    }
}
