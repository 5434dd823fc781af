// SPDX-License-Identifier: Apache-2.0
//! The life of groups on the kernel's own cgroup file systems. These need root
//! and a mounted hierarchy; without, each says so and passes.

use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use oci_spec::runtime::{LinuxCpuBuilder, LinuxMemoryBuilder, LinuxPids};

use super::*;

/// A mounted version 2 hierarchy, alone or beside version 1.
pub(super) fn unified() -> Option<Cgroups> {
    usable(&["/sys/fs/cgroup", "/sys/fs/cgroup/unified"], Version::V2)
}

pub(super) fn split() -> Option<Cgroups> {
    usable(&["/sys/fs/cgroup"], Version::V1)
}

fn usable(roots: &[&str], version: Version) -> Option<Cgroups> {
    let found = roots
        .iter()
        .map(|root| Cgroups::detect_at(Path::new(root)))
        .find(|cgroups| cgroups.version() == version);
    if !nix::unistd::geteuid().is_root() || found.is_none() {
        eprintln!("SKIPPED: needs root and a mounted cgroup hierarchy of {version:?}");
        return None;
    }
    found
}

/// A path no other test uses, below a pod of its own.
pub(super) fn path(name: &str) -> CgroupPath {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let pod = format!("/keelson-test-{}-{n}/{name}", std::process::id());
    CgroupPath::parse(&pod, "unused").unwrap()
}

/// Long enough for a kernel under any load.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the event loop waits for, waited for here.
fn done<T>(wait: impl Future<Output = Result<T, CgroupError>>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder
        .enable_all()
        .build()
        .unwrap()
        .block_on(wait)
        .unwrap()
}

/// Nothing runs in the group any more, at last.
pub(super) fn empties(group: &Cgroup) -> bool {
    done(group.emptied(PATIENCE))
}

fn freezes(group: &Cgroup) -> bool {
    group.begin_freeze().unwrap();
    done(group.frozen(PATIENCE))
}

/// Starts a process and puts it into the group the way its child would.
pub(super) fn start(group: &Cgroup) -> Child {
    let child = Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = child.id().to_string();
    match group.join().unwrap() {
        Join::V1(files) => {
            for file in files {
                nix::unistd::write(&file, pid.as_bytes()).unwrap();
            }
        }
        Join::V2(dir) => {
            let flags = nix::fcntl::OFlag::O_WRONLY;
            let mode = nix::sys::stat::Mode::empty();
            let file = nix::fcntl::openat(&dir, "cgroup.procs", flags, mode).unwrap();
            nix::unistd::write(&file, pid.as_bytes()).unwrap();
        }
        Join::None => panic!("no hierarchy"),
    }
    child
}

fn a_whole_life(cgroups: &Cgroups) {
    let path = path("pod/c1");
    let group = cgroups.create(&path).unwrap();
    let mut child = start(&group);
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    assert_eq!(group.pids().unwrap(), [pid]);
    assert!(!group.try_remove().unwrap());
    assert!(matches!(
        cgroups.create(&path),
        Err(CgroupError::InUse { .. })
    ));
    assert!(!done(group.emptied(Duration::ZERO)));
    group.kill().unwrap();
    assert!(empties(&group));
    child.wait().unwrap();
    assert!(group.try_remove().unwrap());
    assert!(group.try_remove().unwrap());
    assert!(group.pids().unwrap().is_empty());
    group.kill().unwrap();
    assert!(empties(&group));
    assert_eq!(cgroups.parents().keys().collect::<Vec<_>>(), [""]);
}

/// The pod's group goes with the last container, not before.
fn parents_follow_their_containers(cgroups: &Cgroups, root: &Path) {
    let first = path("c1");
    let pod = first.as_str().split_once('/').unwrap().0.to_owned();
    let second = CgroupPath::parse(&format!("{pod}/c2"), "unused").unwrap();
    let (first, second) = (
        cgroups.create(&first).unwrap(),
        cgroups.create(&second).unwrap(),
    );
    assert!(first.try_remove().unwrap() && first.try_remove().unwrap());
    assert!(root.join(&pod).is_dir());
    assert!(second.try_remove().unwrap());
    assert!(!root.join(&pod).exists());
    // What has the path of a removed group is not removed in its place.
    let again = cgroups.create(&second.path).unwrap();
    assert!(second.try_remove().unwrap());
    assert!(root.join(again.path()).is_dir());
    assert!(again.try_remove().unwrap());
    // And comes back for the next one.
    assert!(cgroups.create(&second.path).unwrap().try_remove().unwrap());
    assert!(!root.join(&pod).exists());
}

fn groups_made_inside_go_too(cgroups: &Cgroups, root: &Path) {
    let group = cgroups.create(&path("c1")).unwrap();
    let inner = root.join(group.path()).join("a/b/c");
    std::fs::create_dir_all(&inner).unwrap();
    std::fs::create_dir_all(inner.with_file_name("d")).unwrap();
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    std::fs::write(inner.join("cgroup.procs"), child.id().to_string()).unwrap();
    assert_eq!(group.pids().unwrap().len(), 1);
    assert!(!group.try_remove().unwrap());
    group.kill().unwrap();
    assert!(empties(&group));
    child.wait().unwrap();
    assert!(group.try_remove().unwrap());
    assert!(!root.join(group.path()).exists());
}

pub(super) fn root_of(cgroups: &Cgroups) -> PathBuf {
    let roots = match cgroups.version() {
        Version::V1 => ["/sys/fs/cgroup/pids", "/sys/fs/cgroup/memory"],
        _ => ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"],
    };
    let found = roots.into_iter().map(PathBuf::from);
    let mut found = found.filter(|root| root.join("cgroup.procs").exists());
    found.next().unwrap()
}

#[test]
fn life_of_a_group_on_v2() {
    if let Some(cgroups) = unified() {
        a_whole_life(&cgroups);
        parents_follow_their_containers(&cgroups, &root_of(&cgroups));
    }
}

#[test]
fn life_of_a_group_on_v1() {
    if let Some(cgroups) = split() {
        a_whole_life(&cgroups);
        parents_follow_their_containers(&cgroups, &root_of(&cgroups));
    }
}

#[test]
fn bug_processes_of_nested_groups_are_killed() {
    for cgroups in [unified(), split()].into_iter().flatten() {
        groups_made_inside_go_too(&cgroups, &root_of(&cgroups));
    }
}

#[test]
fn freezing_reports_when_it_is_done() {
    for cgroups in [unified(), split()].into_iter().flatten() {
        let group = cgroups.create(&path("c1")).unwrap();
        let mut child = start(&group);
        assert!(freezes(&group));
        // A frozen group dies as quickly as a running one.
        group.kill().unwrap();
        if cgroups.version() == Version::V1 {
            group.thaw().unwrap();
        }
        assert!(empties(&group));
        child.wait().unwrap();
        assert!(group.try_remove().unwrap());
    }
}

#[test]
fn fresh_processes_go_to_the_init_leaf() {
    let Some(cgroups) = unified() else { return };
    let group = cgroups.create(&path("c1")).unwrap();
    let leaf = root_of(&cgroups).join(group.path()).join("init");
    std::fs::create_dir(&leaf).unwrap();
    let mut child = start(&group);
    let inside = std::fs::read_to_string(leaf.join("cgroup.procs")).unwrap();
    assert_eq!(inside.trim_end(), child.id().to_string());
    group.kill().unwrap();
    assert!(empties(&group));
    child.wait().unwrap();
    assert!(group.try_remove().unwrap());
}

/// As a systemd leaves it: no process may be in the group itself.
#[test]
fn a_group_that_gives_its_controllers_on_gets_a_leaf() {
    for leaf in ["init", "init.scope"] {
        let Some(cgroups) = unified() else { return };
        let group = cgroups.create(&path("c1")).unwrap();
        let dir = root_of(&cgroups).join(group.path());
        let controllers = std::fs::read_to_string(dir.join("cgroup.controllers")).unwrap();
        let Some(one) = controllers.split_ascii_whitespace().next() else {
            // A hybrid hierarchy has no controllers to give on; the VM's has.
            assert!(group.try_remove().unwrap());
            return;
        };
        if leaf == "init.scope" {
            std::fs::create_dir(dir.join(leaf)).unwrap();
        }
        std::fs::write(dir.join("cgroup.subtree_control"), format!("+{one}")).unwrap();
        let mut child = start(&group);
        let inside = std::fs::read_to_string(dir.join(leaf).join("cgroup.procs")).unwrap();
        assert_eq!(inside.trim_end(), child.id().to_string());
        group.kill().unwrap();
        assert!(empties(&group));
        child.wait().unwrap();
        assert!(group.try_remove().unwrap());
    }
}

#[test]
fn a_delegatee_gets_the_group_and_three_files() {
    use std::os::unix::fs::MetadataExt;
    let Some(cgroups) = unified() else { return };
    let group = cgroups.create(&path("c1")).unwrap();
    let dir = root_of(&cgroups).join(group.path());
    group
        .delegate_to(Uid::from_raw(1234), Gid::from_raw(4321))
        .unwrap();
    let owner = |file: &str| {
        let facts = dir.join(file).metadata().unwrap();
        (facts.uid(), facts.gid())
    };
    for file in [
        "",
        "cgroup.procs",
        "cgroup.subtree_control",
        "cgroup.threads",
    ] {
        assert_eq!(owner(file), (1234, 4321), "{file}");
    }
    assert_eq!(owner("cgroup.freeze"), (0, 0));
    assert!(group.try_remove().unwrap());
}

/// A container engine inside may have paused a container of its own.
#[test]
fn bug_a_group_that_was_frozen_inside_dies() {
    for cgroups in [unified(), split()].into_iter().flatten() {
        let group = cgroups.create(&path("c1")).unwrap();
        let inner = format!("{}/inner", group.path());
        let hierarchy = match &cgroups.0.layout {
            Layout::V1(split) => split.hierarchy_of("freezer").unwrap(),
            Layout::V2(unified) => &unified.hierarchy,
            Layout::None => unreachable!(),
        };
        let mut child = start(&group);
        hierarchy.mkdir(&inner).unwrap();
        let pid = child.id().to_string();
        hierarchy.write(&inner, "cgroup.procs", &pid).unwrap();
        match cgroups.version() {
            Version::V1 => hierarchy.write(&inner, "freezer.state", "FROZEN").unwrap(),
            _ => hierarchy.write(&inner, "cgroup.freeze", "1").unwrap(),
        }
        assert!(!done(group.frozen(Duration::ZERO)));
        assert!(freezes(&group));
        group.kill().unwrap();
        assert!(empties(&group));
        child.wait().unwrap();
        assert!(group.try_remove().unwrap());
    }
}

#[test]
fn what_was_applied_before_a_failure_is_said() {
    let Some(cgroups) = split() else { return };
    let group = cgroups.create(&path("c1")).unwrap();
    let cpu = LinuxCpuBuilder::default().shares(7u64).mems("77777");
    let mut pids = LinuxPids::default();
    pids.set_limit(17);
    let mut resources = LinuxResources::default();
    resources
        .set_cpu(Some(cpu.build().unwrap()))
        .set_pids(Some(pids));
    // Nothing before the memory nodes: the error is theirs alone.
    let error = group.apply(&resources).unwrap_err();
    assert!(matches!(error, CgroupError::Limit { .. }), "{error}");
    let cpu = LinuxCpuBuilder::default().shares(7u64).quota(1i64);
    resources.set_cpu(Some(cpu.build().unwrap()));
    let error = group.apply(&resources).unwrap_err();
    assert!(error.to_string().contains("cpu.shares"), "{error}");
    assert!(error.is_bad_input());
    assert!(group.try_remove().unwrap());
}

#[test]
fn limits_of_v1_reach_the_kernel() {
    let Some(cgroups) = split() else { return };
    let group = cgroups.create(&path("c1")).unwrap();
    let read = |controller: &str, file: &str| {
        let dir = Path::new("/sys/fs/cgroup").join(controller);
        let text = std::fs::read_to_string(dir.join(group.path()).join(file)).unwrap();
        text.trim_end().to_owned()
    };
    let memory = |limit: i64, both: i64| {
        let memory = LinuxMemoryBuilder::default().limit(limit).swap(both);
        let cpu = LinuxCpuBuilder::default()
            .shares(1u64)
            .quota(5_000i64)
            .period(20_000u64)
            .cpus("0");
        let mut pids = LinuxPids::default();
        pids.set_limit(17);
        let mut resources = LinuxResources::default();
        resources
            .set_memory(Some(memory.build().unwrap()))
            .set_cpu(Some(cpu.build().unwrap()))
            .set_pids(Some(pids));
        resources
    };
    // Growing and shrinking need the two memory limits in different orders.
    for (limit, both) in [
        (64 << 20, 128 << 20),
        (256 << 20, 300 << 20),
        (32 << 20, 32 << 20),
    ] {
        group.apply(&memory(limit, both)).unwrap();
        assert_eq!(read("memory", "memory.limit_in_bytes"), limit.to_string());
        if Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists() {
            assert_eq!(
                read("memory", "memory.memsw.limit_in_bytes"),
                both.to_string()
            );
        }
    }
    assert_eq!(read("cpu", "cpu.shares"), "2");
    assert_eq!(read("cpu", "cpu.cfs_quota_us"), "5000");
    assert_eq!(read("pids", "pids.max"), "17");
    assert_eq!(read("cpuset", "cpuset.cpus"), "0");
    let error = group.apply(&memory(64 << 20, 32 << 20)).unwrap_err();
    assert!(error.is_bad_input(), "{error}");
    assert!(group.try_remove().unwrap());
}

#[test]
fn without_cgroups_containers_still_run() {
    let empty = tempfile::tempdir().unwrap();
    let cgroups = Cgroups::detect_at(empty.path());
    assert_eq!(cgroups.version(), Version::None);
    assert_eq!(
        Cgroups::detect_at(Path::new("/absent")).version(),
        Version::None
    );
    let group = cgroups.create(&path("c1")).unwrap();
    assert!(matches!(group.join().unwrap(), Join::None));
    group.apply(&LinuxResources::default()).unwrap();
    group.kill().unwrap();
    assert!(done(group.emptied(Duration::ZERO)));
    assert!(group.try_remove().unwrap());
}
