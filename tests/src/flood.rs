// SPDX-License-Identifier: Apache-2.0
//! Floods of the kernel's messages about devices: more of them than anybody can want, and more than there is room for.
//!
//! The kernel repeats what it has said of a device for whoever writes to the device's `uevent` file; containers of
//! [`Agent::seeing_all`](crate::Agent::seeing_all) may.

use std::future::Future;
use std::time::Duration;

use protocols::oci;

use crate::container::{Container, Process};
use crate::spec;
use crate::vm::Vm;

/// Three who never stop.
const FLOOD: &str = "for n in 1 2 3; do
        while :; do for file in /mnt/sys/class/*/*/uevent; do echo change > $file; done; done 2>/dev/null &
    done
    wait";

/// Keeps the agent from reading its messages until some are lost, as the kernel counts for each netlink socket (15 is its uevents'), and
/// until `ARRIVED` holds. Once there was no room the kernel gives a socket nothing until it is empty.
const STOP: &str = "stopped=/mnt/sys/fs/cgroup/stopped
    lost() { awk '$2 == 15 { lost += $9 } END { print lost + 0 }' /proc/net/netlink; }
    long=\"change 00000000-0000-0000-0000-000000000000 A=$(printf %01200d 0)\"
    before=$(lost)
    mkdir $stopped && echo 1 > $stopped/cgroup.procs && echo 1 > $stopped/cgroup.freeze || exit 1
    until grep -q 'frozen 1' $stopped/cgroup.events; do :; done
    while [ $(lost) = $before ]; do
        for n in $(seq 100); do echo \"$long\" > /mnt/sys/class/mem/null/uevent; done
    done
    echo 'no more room' > /mnt/dev/kmsg
    until eval \"$ARRIVED\"; do sleep 0.1; done
    echo 0 > $stopped/cgroup.freeze
    echo 1 > /mnt/sys/fs/cgroup/cgroup.procs
    rmdir $stopped
    echo $(($(lost) - before))";

/// How long the kernel may take to fill the agent's room, on a loaded machine.
const FILLS: Duration = Duration::from_secs(120);

impl Container {
    /// Lets the kernel speak of all its devices without end. For a probe; killing it ends that.
    pub async fn flood(&self) -> Process {
        self.exec(&["sh", "-c", FLOOD]).start().await
    }
}

impl Vm {
    /// Has `plug` happen while the agent stands still and the kernel has no room left for messages to it: it is told to nobody. The agent
    /// goes on when the shell condition `arrived` holds in the guest, whose root is `/mnt`. For guests with cgroup v2; gives how many
    /// messages were lost.
    pub async fn unheard(&self, plug: impl Future<Output = ()>, arrived: &str) -> u64 {
        let stop = self.seeing_all("warden").sh(STOP).linux(may_stop_pid_1);
        let stop = stop.env(&format!("ARRIVED={arrived}")).run();
        let plug = async {
            let full = self.machine().wait_line("no more room", FILLS).await;
            full.unwrap_or_else(|e| panic!("Nothing was lost: {e:#}"));
            plug.await;
        };
        tokio::pin!(stop, plug);
        tokio::select! {
            early = &mut stop => panic!("Nothing was lost: {early:?}"),
            () = &mut plug => {}
        }
        let lost = stop.await.ok().parse().expect("a number");
        assert!(lost > 0, "the agent has closed its socket");
        lost
    }
}

/// Moves processes in the guest's whole tree of cgroups, and opens any device.
fn may_stop_pid_1(linux: &mut oci::Linux) {
    let mut cgroups = spec::namespace("cgroup");
    cgroups.Path = "/proc/1/ns/cgroup".to_owned();
    linux.Namespaces.push(cgroups);
    let mut all = oci::LinuxDeviceCgroup::new();
    (all.Allow, all.Type, all.Access) = (true, "a".to_owned(), "rwm".to_owned());
    linux.Resources.mut_or_insert_default().Devices = vec![all];
}
