// SPDX-License-Identifier: Apache-2.0
//! From config.json to the wire's messages. Words are passed on as they are: whether they mean anything is for the agent to say.
//! A field that the wire has no place for is an error with its path; what the specification does not know is ignored, as it asks for.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Result, anyhow, bail};
use protobuf::MessageField;
use protocols::oci;
use serde_json::Value;

use crate::cli::advice;

/// A place in a document.
#[derive(Clone)]
struct Node<'a> {
    path: String,
    value: Option<&'a Value>,
}

impl<'a> Node<'a> {
    fn root(value: &'a Value, path: &str) -> Node<'a> {
        let value = Some(value).filter(|value| !value.is_null());
        Node {
            path: path.to_owned(),
            value,
        }
    }

    fn get(&self, key: &str) -> Node<'a> {
        let value = self.value.and_then(|value| value.get(key));
        let path = if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        };
        Node {
            path,
            value: value.filter(|value| !value.is_null()),
        }
    }

    fn wrong(&self, wanted: &str) -> anyhow::Error {
        anyhow!("{} must be {wanted}", self.path)
    }

    fn text(&self) -> Result<String> {
        match self.value {
            None => Ok(String::new()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(_) => Err(self.wrong("a string")),
        }
    }

    fn flag(&self) -> Result<bool> {
        match self.value {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.wrong("true or false")),
        }
    }

    /// An absent number is 0, which is what the wire calls not set.
    fn number<T: TryFrom<i128>>(&self) -> Result<T> {
        self.number_or(0)
    }

    fn number_or<T: TryFrom<i128>>(&self, absent: i128) -> Result<T> {
        let number = match self.value {
            None => Some(absent),
            Some(value) => value
                .as_u64()
                .map(i128::from)
                .or(value.as_i64().map(i128::from)),
        };
        let number = number.and_then(|number| T::try_from(number).ok());
        number.ok_or_else(|| self.wrong("a whole number within its limits"))
    }

    fn list(&self) -> Result<Vec<Node<'a>>> {
        let Some(value) = self.value else {
            return Ok(Vec::new());
        };
        let items = value.as_array().ok_or_else(|| self.wrong("a list"))?;
        let place = |(i, item)| Node::root(item, &format!("{}[{i}]", self.path));
        Ok(items.iter().enumerate().map(place).collect())
    }

    fn each<T>(&self, read: impl Fn(&Node<'a>) -> Result<T>) -> Result<Vec<T>> {
        self.list()?.iter().map(read).collect()
    }

    fn texts(&self) -> Result<Vec<String>> {
        self.each(Node::text)
    }

    fn map(&self) -> Result<HashMap<String, String>> {
        let Some(value) = self.value else {
            return Ok(HashMap::new());
        };
        let entries = value.as_object().ok_or_else(|| self.wrong("an object"))?;
        entries
            .keys()
            .map(|key| Ok((key.clone(), self.get(key).text()?)))
            .collect()
    }

    fn message<T>(&self, read: impl Fn(&Node<'a>) -> Result<T>) -> Result<MessageField<T>> {
        match self.value {
            None => Ok(MessageField::none()),
            Some(Value::Object(_)) => Ok(Some(read(self)?).into()),
            Some(_) => Err(self.wrong("an object")),
        }
    }

    /// Insists that nothing is said about what the wire cannot say.
    fn without(&self, keys: &[&str]) -> Result<()> {
        for key in keys {
            let node = self.get(key);
            let empty = match node.value {
                None => true,
                Some(Value::Object(entries)) => entries.is_empty(),
                Some(Value::Array(items)) => items.is_empty(),
                Some(value) => value == "",
            };
            if !empty {
                let text = format!("{} cannot be carried by the agent's protocol", node.path);
                return Err(advice(
                    text,
                    "leave it out: section 2.2 of the protocol lists such fields",
                ));
            }
        }
        Ok(())
    }
}

/// The whole of config.json, for a bundle.
pub fn spec(config: &Value, bundle: &Path) -> Result<oci::Spec> {
    let config = Node::root(config, "");
    config.without(&["domainname", "vm", "zos"])?;
    let root = config.get("root");
    if root.value.is_none() {
        bail!("root is not there");
    }
    Ok(oci::Spec {
        Version: config.get("ociVersion").text()?,
        Process: config.get("process").message(process_node)?,
        Root: root.message(|root| {
            let path = bundle.join(root.get("path").text()?);
            Ok(oci::Root {
                Path: path.to_string_lossy().into_owned(),
                Readonly: root.get("readonly").flag()?,
                ..Default::default()
            })
        })?,
        Hostname: config.get("hostname").text()?,
        Mounts: config.get("mounts").each(|node| mount(node, bundle))?,
        Hooks: config.get("hooks").message(hooks)?,
        Annotations: config.get("annotations").map()?,
        Linux: config.get("linux").message(linux)?,
        ..Default::default()
    })
}

/// A process alone.
pub fn process(value: &Value) -> Result<oci::Process> {
    process_node(&Node::root(value, "process"))
}

fn process_node(node: &Node) -> Result<oci::Process> {
    node.without(&["scheduler", "ioPriority", "execCPUAffinity", "commandLine"])?;
    node.get("user").without(&["umask"])?;
    Ok(oci::Process {
        Terminal: node.get("terminal").flag()?,
        ConsoleSize: node.get("consoleSize").message(|size| {
            Ok(oci::Box {
                Height: size.get("height").number()?,
                Width: size.get("width").number()?,
                ..Default::default()
            })
        })?,
        User: node.get("user").message(|user| {
            Ok(oci::User {
                UID: user.get("uid").number()?,
                GID: user.get("gid").number()?,
                AdditionalGids: user.get("additionalGids").each(Node::number)?,
                Username: user.get("username").text()?,
                ..Default::default()
            })
        })?,
        Args: node.get("args").texts()?,
        Env: node.get("env").texts()?,
        Cwd: node.get("cwd").text()?,
        Capabilities: node.get("capabilities").message(|sets| {
            Ok(oci::LinuxCapabilities {
                Bounding: sets.get("bounding").texts()?,
                Effective: sets.get("effective").texts()?,
                Inheritable: sets.get("inheritable").texts()?,
                Permitted: sets.get("permitted").texts()?,
                Ambient: sets.get("ambient").texts()?,
                ..Default::default()
            })
        })?,
        Rlimits: node.get("rlimits").each(|limit| {
            Ok(oci::POSIXRlimit {
                Type: limit.get("type").text()?,
                Hard: limit.get("hard").number()?,
                Soft: limit.get("soft").number()?,
                ..Default::default()
            })
        })?,
        NoNewPrivileges: node.get("noNewPrivileges").flag()?,
        ApparmorProfile: node.get("apparmorProfile").text()?,
        OOMScoreAdj: node.get("oomScoreAdj").number()?,
        SelinuxLabel: node.get("selinuxLabel").text()?,
        ..Default::default()
    })
}

/// Sources of binds are relative to the bundle.
fn mount(node: &Node, bundle: &Path) -> Result<oci::Mount> {
    node.without(&["uidMappings", "gidMappings"])?;
    let options = node.get("options").texts()?;
    let kind = node.get("type").text()?;
    let is_bind = kind == "bind" || options.iter().any(|word| word == "bind" || word == "rbind");
    let mut source = node.get("source").text()?;
    if is_bind && !source.is_empty() {
        source = bundle.join(source).to_string_lossy().into_owned();
    }
    Ok(oci::Mount {
        destination: node.get("destination").text()?,
        source,
        type_: kind,
        options,
        ..Default::default()
    })
}

fn hooks(node: &Node) -> Result<oci::Hooks> {
    let hooks = |key| {
        node.get(key).each(|hook| {
            Ok(oci::Hook {
                Path: hook.get("path").text()?,
                Args: hook.get("args").texts()?,
                Env: hook.get("env").texts()?,
                Timeout: hook.get("timeout").number()?,
                ..Default::default()
            })
        })
    };
    Ok(oci::Hooks {
        Prestart: hooks("prestart")?,
        Poststart: hooks("poststart")?,
        Poststop: hooks("poststop")?,
        CreateRuntime: hooks("createRuntime")?,
        CreateContainer: hooks("createContainer")?,
        StartContainer: hooks("startContainer")?,
        ..Default::default()
    })
}

fn linux(node: &Node) -> Result<oci::Linux> {
    node.without(&["personality", "timeOffsets", "memoryPolicy", "netDevices"])?;
    let mappings = |key| {
        node.get(key).each(|range| {
            Ok(oci::LinuxIDMapping {
                HostID: range.get("hostID").number()?,
                ContainerID: range.get("containerID").number()?,
                Size: range.get("size").number()?,
                ..Default::default()
            })
        })
    };
    Ok(oci::Linux {
        UIDMappings: mappings("uidMappings")?,
        GIDMappings: mappings("gidMappings")?,
        Sysctl: node.get("sysctl").map()?,
        Resources: node.get("resources").message(resources_node)?,
        CgroupsPath: node.get("cgroupsPath").text()?,
        Namespaces: node.get("namespaces").each(|namespace| {
            Ok(oci::LinuxNamespace {
                Type: namespace.get("type").text()?,
                Path: namespace.get("path").text()?,
                ..Default::default()
            })
        })?,
        Devices: node.get("devices").each(|device| {
            Ok(oci::LinuxDevice {
                Path: device.get("path").text()?,
                Type: device.get("type").text()?,
                Major: device.get("major").number()?,
                Minor: device.get("minor").number()?,
                FileMode: device.get("fileMode").number()?,
                UID: device.get("uid").number()?,
                GID: device.get("gid").number()?,
                ..Default::default()
            })
        })?,
        Seccomp: node.get("seccomp").message(seccomp)?,
        RootfsPropagation: node.get("rootfsPropagation").text()?,
        MaskedPaths: node.get("maskedPaths").texts()?,
        ReadonlyPaths: node.get("readonlyPaths").texts()?,
        MountLabel: node.get("mountLabel").text()?,
        IntelRdt: node.get("intelRdt").message(|rdt| {
            rdt.without(&[
                "closID",
                "memBwSchema",
                "enableCMT",
                "enableMBM",
                "schemata",
                "enableMonitoring",
            ])?;
            Ok(oci::LinuxIntelRdt {
                L3CacheSchema: rdt.get("l3CacheSchema").text()?,
                ..Default::default()
            })
        })?,
        ..Default::default()
    })
}

fn seccomp(node: &Node) -> Result<oci::LinuxSeccomp> {
    // EPERM is what its absence means.
    if node
        .get("defaultErrnoRet")
        .number_or::<i32>(libc::EPERM.into())?
        != libc::EPERM
    {
        node.without(&["defaultErrnoRet"])?;
    }
    node.without(&["listenerPath", "listenerMetadata"])?;
    Ok(oci::LinuxSeccomp {
        DefaultAction: node.get("defaultAction").text()?,
        Architectures: node.get("architectures").texts()?,
        Flags: node.get("flags").texts()?,
        Syscalls: node.get("syscalls").each(|rule| {
            let errno = rule.get("errnoRet");
            let errno = errno.value.map(|_| errno.number()).transpose()?;
            Ok(oci::LinuxSyscall {
                Names: rule.get("names").texts()?,
                Action: rule.get("action").text()?,
                ErrnoRet: errno.map(oci::linux_syscall::ErrnoRet::Errnoret),
                Args: rule.get("args").each(|arg| {
                    Ok(oci::LinuxSeccompArg {
                        Index: arg.get("index").number()?,
                        Value: arg.get("value").number()?,
                        ValueTwo: arg.get("valueTwo").number()?,
                        Op: arg.get("op").text()?,
                        ..Default::default()
                    })
                })?,
                ..Default::default()
            })
        })?,
        ..Default::default()
    })
}

/// `linux.resources` alone.
pub fn resources(value: &Value) -> Result<oci::LinuxResources> {
    resources_node(&Node::root(value, "linux.resources"))
}

fn resources_node(node: &Node) -> Result<oci::LinuxResources> {
    node.without(&["unified", "rdma"])?;
    Ok(oci::LinuxResources {
        Devices: node.get("devices").each(|rule| {
            Ok(oci::LinuxDeviceCgroup {
                Allow: rule.get("allow").flag()?,
                Type: rule.get("type").text()?,
                Major: rule.get("major").number_or(-1)?,
                Minor: rule.get("minor").number_or(-1)?,
                Access: rule.get("access").text()?,
                ..Default::default()
            })
        })?,
        Memory: node.get("memory").message(memory)?,
        CPU: node.get("cpu").message(cpu)?,
        Pids: node.get("pids").message(|pids| {
            Ok(oci::LinuxPids {
                Limit: pids.get("limit").number()?,
                ..Default::default()
            })
        })?,
        BlockIO: node.get("blockIO").message(block_io)?,
        HugepageLimits: node.get("hugepageLimits").each(|limit| {
            Ok(oci::LinuxHugepageLimit {
                Pagesize: limit.get("pageSize").text()?,
                Limit: limit.get("limit").number()?,
                ..Default::default()
            })
        })?,
        Network: node.get("network").message(|network| {
            Ok(oci::LinuxNetwork {
                ClassID: network.get("classID").number()?,
                Priorities: network.get("priorities").each(|priority| {
                    Ok(oci::LinuxInterfacePriority {
                        Name: priority.get("name").text()?,
                        Priority: priority.get("priority").number()?,
                        ..Default::default()
                    })
                })?,
                ..Default::default()
            })
        })?,
        ..Default::default()
    })
}

fn memory(node: &Node) -> Result<oci::LinuxMemory> {
    node.without(&["checkBeforeUpdate", "useHierarchy"])?;
    Ok(oci::LinuxMemory {
        Limit: node.get("limit").number()?,
        Reservation: node.get("reservation").number()?,
        Swap: node.get("swap").number()?,
        Kernel: node.get("kernel").number()?,
        KernelTCP: node.get("kernelTCP").number()?,
        Swappiness: node.get("swappiness").number()?,
        DisableOOMKiller: node.get("disableOOMKiller").flag()?,
        ..Default::default()
    })
}

fn cpu(node: &Node) -> Result<oci::LinuxCPU> {
    node.without(&["burst", "idle"])?;
    Ok(oci::LinuxCPU {
        Shares: node.get("shares").number()?,
        Quota: node.get("quota").number()?,
        Period: node.get("period").number()?,
        RealtimeRuntime: node.get("realtimeRuntime").number()?,
        RealtimePeriod: node.get("realtimePeriod").number()?,
        Cpus: node.get("cpus").text()?,
        Mems: node.get("mems").text()?,
        ..Default::default()
    })
}

fn block_io(node: &Node) -> Result<oci::LinuxBlockIO> {
    let rates = |key| {
        node.get(key).each(|rate| {
            Ok(oci::LinuxThrottleDevice {
                Major: rate.get("major").number()?,
                Minor: rate.get("minor").number()?,
                Rate: rate.get("rate").number()?,
                ..Default::default()
            })
        })
    };
    Ok(oci::LinuxBlockIO {
        Weight: node.get("weight").number()?,
        LeafWeight: node.get("leafWeight").number()?,
        WeightDevice: node.get("weightDevice").each(|weight| {
            Ok(oci::LinuxWeightDevice {
                Major: weight.get("major").number()?,
                Minor: weight.get("minor").number()?,
                Weight: weight.get("weight").number()?,
                LeafWeight: weight.get("leafWeight").number()?,
                ..Default::default()
            })
        })?,
        ThrottleReadBpsDevice: rates("throttleReadBpsDevice")?,
        ThrottleWriteBpsDevice: rates("throttleWriteBpsDevice")?,
        ThrottleReadIOPSDevice: rates("throttleReadIOPSDevice")?,
        ThrottleWriteIOPSDevice: rates("throttleWriteIOPSDevice")?,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn convert(config: Value) -> Result<oci::Spec> {
        spec(&config, Path::new("/bundle"))
    }

    #[test]
    fn paths_are_made_absolute() {
        let spec = convert(json!({
            "root": { "path": "rootfs" },
            "mounts": [
                { "destination": "/a", "source": "data", "options": ["rbind"] },
                { "destination": "/b", "source": "proc", "type": "proc" },
                { "destination": "/c", "source": "/x", "type": "bind" },
            ],
        }))
        .unwrap();
        assert_eq!(spec.Root.Path, "/bundle/rootfs");
        let sources: Vec<_> = spec.Mounts.iter().map(|mount| &*mount.source).collect();
        assert_eq!(sources, ["/bundle/data", "proc", "/x"]);
    }

    #[test]
    fn what_the_wire_cannot_carry_is_named() {
        for (path, value) in [
            ("process.user.umask", json!(18)),
            ("process.scheduler", json!({ "policy": "SCHED_OTHER" })),
            ("linux.timeOffsets", json!({ "monotonic": { "secs": 1 } })),
            ("linux.resources.unified", json!({ "pids.max": "1" })),
            ("linux.resources.cpu.idle", json!(1)),
            ("linux.resources.memory.checkBeforeUpdate", json!(true)),
            ("linux.seccomp.defaultErrnoRet", json!(38)),
        ] {
            let nested = path
                .rsplit('.')
                .fold(value, |value, key| json!({ key: value }));
            let mut config = json!({ "root": { "path": "r" } });
            let (key, value) = nested.as_object().unwrap().iter().next().unwrap();
            config[key] = value.clone();
            let error = convert(config).unwrap_err().to_string();
            assert!(error.starts_with(path), "{error}");
        }
        let error = convert(json!({ "root": {}, "mounts": [{}, { "uidMappings": [{}] }] }));
        assert!(
            error
                .unwrap_err()
                .to_string()
                .starts_with("mounts[1].uidMappings")
        );
    }

    #[test]
    fn unknown_fields_are_ignored_and_wrong_types_are_named() {
        convert(json!({ "root": { "path": "r" }, "futureField": { "umask": 1 } })).unwrap();
        let error = convert(json!({ "root": {}, "process": { "args": ["a", 1] } })).unwrap_err();
        assert_eq!(error.to_string(), "process.args[1] must be a string");
        let error =
            convert(json!({ "root": {}, "process": { "user": { "uid": -1 } } })).unwrap_err();
        assert!(error.to_string().starts_with("process.user.uid"), "{error}");
    }

    #[test]
    fn an_errno_that_is_given_is_told_from_none() {
        let rule = |rule: Value| {
            let seccomp = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] });
            let spec = convert(json!({ "root": {}, "linux": { "seccomp": seccomp } })).unwrap();
            spec.Linux.Seccomp.Syscalls[0].ErrnoRet.clone()
        };
        let given = Some(oci::linux_syscall::ErrnoRet::Errnoret(0));
        assert_eq!(rule(json!({ "names": ["a"], "errnoRet": 0 })), given);
        assert_eq!(rule(json!({ "names": ["a"] })), None);
    }
}
