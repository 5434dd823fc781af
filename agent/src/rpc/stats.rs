// SPDX-License-Identifier: Apache-2.0
//! StatsContainer and GetOOMEvent.

use std::sync::Arc;

use protobuf::MessageField;
use protocols::agent::{
    BlkioStats, BlkioStatsEntry, CgroupStats, CpuStats, CpuUsage, HugetlbStats, MemoryData,
    MemoryStats, NetworkStats, OOMEvent, PidsStats, StatsContainerRequest, StatsContainerResponse,
    ThrottlingData,
};
use tokio::sync::Semaphore;
use ttrpc::Code;

use super::status::{Coded, failure};
use crate::cgroup::{Cpu, Io, IoEntry, Memory, Pids, Stats, Usage};
use crate::container::stats::{ContainerStats, Interface};
use crate::sandbox::{Sandbox, SandboxError};

/// Hosts ask for all containers at once: whatever their files do, statistics
/// never take more than one thread of the blocking pool.
static TURN: Semaphore = Semaphore::const_new(1);

pub async fn container(
    sandbox: &Sandbox,
    request: &StatsContainerRequest,
) -> ttrpc::Result<StatsContainerResponse> {
    let container = sandbox
        .container(&request.container_id)
        .map_err(Coded::status)?;
    let lost = |_| SandboxError::Task.status();
    let turn = TURN
        .acquire()
        .await
        .map_err(|_| SandboxError::Task.status())?;
    let read = move || {
        // Held by the thread, not by the caller, who may go away.
        let _turn = turn;
        container.stats()
    };
    let stats = tokio::task::spawn_blocking(read).await.map_err(lost)?;
    Ok(encode(stats))
}

/// Answers with the next event, whenever that is: hosts repeat a call that
/// fails at once.
pub async fn oom_event(sandbox: &Arc<Sandbox>) -> ttrpc::Result<OOMEvent> {
    // Nothing may be awaited between the taking of an event and its answer.
    match sandbox.oom().next().await {
        Some(container_id) => Ok(OOMEvent {
            container_id,
            ..Default::default()
        }),
        None => Err(failure(Code::INTERNAL, "Sandbox has ended")),
    }
}

fn encode(stats: ContainerStats) -> StatsContainerResponse {
    StatsContainerResponse {
        cgroup_stats: MessageField::some(cgroup(stats.cgroup)),
        network_stats: stats.interfaces.into_iter().map(network).collect(),
        ..Default::default()
    }
}

fn cgroup(stats: Stats) -> CgroupStats {
    let hugetlb = stats.hugetlb.into_iter();
    CgroupStats {
        cpu_stats: stats.cpu.map(cpu).into(),
        memory_stats: stats.memory.map(memory).into(),
        pids_stats: stats.pids.map(pids).into(),
        blkio_stats: stats.io.map(blkio).into(),
        hugetlb_stats: hugetlb.map(|(size, usage)| (size, huge(usage))).collect(),
        ..Default::default()
    }
}

fn cpu(cpu: Cpu) -> CpuStats {
    CpuStats {
        cpu_usage: MessageField::some(CpuUsage {
            total_usage: cpu.total,
            percpu_usage: cpu.per_cpu,
            usage_in_kernelmode: cpu.kernel,
            usage_in_usermode: cpu.user,
            ..Default::default()
        }),
        throttling_data: MessageField::some(ThrottlingData {
            periods: cpu.periods,
            throttled_periods: cpu.throttled_periods,
            throttled_time: cpu.throttled_time,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn memory(memory: Memory) -> MemoryStats {
    MemoryStats {
        cache: memory.cache,
        usage: MessageField::some(data(memory.usage)),
        swap_usage: memory.swap.map(data).into(),
        kernel_usage: MessageField::some(data(memory.kernel)),
        use_hierarchy: memory.use_hierarchy,
        stats: memory.details.into_iter().collect(),
        ..Default::default()
    }
}

fn data(usage: Usage) -> MemoryData {
    MemoryData {
        usage: usage.current,
        max_usage: usage.peak,
        failcnt: usage.failures,
        limit: usage.limit,
        ..Default::default()
    }
}

fn huge(usage: Usage) -> HugetlbStats {
    HugetlbStats {
        usage: usage.current,
        max_usage: usage.peak,
        failcnt: usage.failures,
        ..Default::default()
    }
}

fn pids(pids: Pids) -> PidsStats {
    PidsStats {
        current: pids.current,
        limit: pids.limit,
        ..Default::default()
    }
}

fn blkio(io: Io) -> BlkioStats {
    BlkioStats {
        io_service_bytes_recursive: entries(io.bytes),
        io_serviced_recursive: entries(io.requests),
        io_queued_recursive: entries(io.queued),
        io_service_time_recursive: entries(io.service_time),
        io_wait_time_recursive: entries(io.wait_time),
        io_merged_recursive: entries(io.merged),
        io_time_recursive: entries(io.time),
        sectors_recursive: entries(io.sectors),
        ..Default::default()
    }
}

fn entries(entries: Vec<IoEntry>) -> Vec<BlkioStatsEntry> {
    let entry = |entry: IoEntry| BlkioStatsEntry {
        major: entry.major,
        minor: entry.minor,
        op: entry.op,
        value: entry.value,
        ..Default::default()
    };
    entries.into_iter().map(entry).collect()
}

fn network(interface: Interface) -> NetworkStats {
    let Interface {
        name,
        received,
        sent,
    } = interface;
    NetworkStats {
        name,
        rx_bytes: received.bytes,
        rx_packets: received.packets,
        rx_errors: received.errors,
        rx_dropped: received.dropped,
        tx_bytes: sent.bytes,
        tx_packets: sent.packets,
        tx_errors: sent.errors,
        tx_dropped: sent.dropped,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::stats::Traffic;

    #[test]
    fn absent_parts_are_unset() {
        let answer = encode(ContainerStats::default());
        let cgroup = answer.cgroup_stats.as_ref().unwrap();
        assert_eq!(cgroup, &CgroupStats::new());
        let memory = Some(Memory::default());
        let stats = Stats {
            memory,
            ..Stats::default()
        };
        let cgroup = super::cgroup(stats);
        assert!(cgroup.memory_stats.is_some() && cgroup.cpu_stats.is_none());
        assert!(cgroup.memory_stats.swap_usage.is_none());
    }

    #[test]
    fn every_figure_has_its_field() {
        let usage = |from| Usage {
            current: from,
            peak: from + 1,
            failures: from + 2,
            limit: from + 3,
        };
        let data = data(usage(10));
        let seen = (data.usage, data.max_usage, data.failcnt, data.limit);
        assert_eq!(seen, (10, 11, 12, 13));
        let huge = huge(usage(20));
        assert_eq!((huge.usage, huge.max_usage, huge.failcnt), (20, 21, 22));
        let cpu = cpu(Cpu {
            total: 1,
            user: 2,
            kernel: 3,
            per_cpu: vec![4],
            periods: 5,
            throttled_periods: 6,
            throttled_time: 7,
        });
        let (used, held) = (cpu.cpu_usage, cpu.throttling_data);
        let modes = (used.usage_in_usermode, used.usage_in_kernelmode);
        assert_eq!((used.total_usage, modes), (1, (2, 3)));
        assert_eq!(used.percpu_usage, [4]);
        let throttled = (held.throttled_periods, held.throttled_time);
        assert_eq!((held.periods, throttled), (5, (6, 7)));
        let traffic = |from| Traffic {
            bytes: from,
            packets: from + 1,
            errors: from + 2,
            dropped: from + 3,
        };
        let wire = network(Interface {
            name: "eth0".to_owned(),
            received: traffic(30),
            sent: traffic(40),
        });
        let rx = (
            wire.rx_bytes,
            wire.rx_packets,
            wire.rx_errors,
            wire.rx_dropped,
        );
        let tx = (
            wire.tx_bytes,
            wire.tx_packets,
            wire.tx_errors,
            wire.tx_dropped,
        );
        assert_eq!((rx, tx), ((30, 31, 32, 33), (40, 41, 42, 43)));
    }
}
