// SPDX-License-Identifier: Apache-2.0
//! Where the hierarchies of version 1 keep which figure.

use super::{Cpu, Files, Io, IoEntry, Memory, Pids, Stats, Usage, parse};

/// What `cpuacct.stat` counts in, which is the same on every architecture that
/// this runs on: a hundredth of a second.
const TICK: u64 = 10_000_000;

/// `open` gives the group's files in the hierarchy of a controller.
pub(super) fn read(open: impl Fn(&str) -> Option<Files>, huge_page_sizes: &[String]) -> Stats {
    Stats {
        cpu: cpu(open("cpu"), open("cpuacct")),
        memory: open("memory").and_then(|mut files| memory(&mut files)),
        pids: open("pids").and_then(|mut files| pids(&mut files)),
        io: open("blkio").map(|mut files| io(&mut files)),
        hugetlb: open("hugetlb")
            .map(|mut files| hugetlb(&mut files, huge_page_sizes))
            .unwrap_or_default(),
    }
}

fn cpu(quota: Option<Files>, account: Option<Files>) -> Option<Cpu> {
    let known = quota.is_some() || account.is_some();
    let mut cpu = Cpu::default();
    if let Some(mut files) = account {
        cpu.total = files.count("cpuacct.usage");
        for (key, ticks) in files
            .text("cpuacct.stat")
            .into_iter()
            .flat_map(parse::pairs)
        {
            match key {
                "user" => cpu.user = ticks.saturating_mul(TICK),
                "system" => cpu.kernel = ticks.saturating_mul(TICK),
                _ => {}
            }
        }
        let per_cpu = files.text("cpuacct.usage_percpu");
        cpu.per_cpu = per_cpu.map(parse::numbers).unwrap_or_default();
    }
    if let Some(mut files) = quota {
        for (key, value) in files.text("cpu.stat").into_iter().flat_map(parse::pairs) {
            match key {
                "nr_periods" => cpu.periods = value,
                "nr_throttled" => cpu.throttled_periods = value,
                "throttled_time" => cpu.throttled_time = value,
                _ => {}
            }
        }
    }
    known.then_some(cpu)
}

fn memory(files: &mut Files) -> Option<Memory> {
    let usage = usage(files, "memory", 0)?;
    let details = files.pairs("memory.stat").unwrap_or_default();
    let cache = details.iter().find(|(key, _)| key == "cache");
    Some(Memory {
        cache: cache.map_or(0, |(_, bytes)| *bytes),
        usage,
        swap: self::usage(files, "memory.memsw", 0),
        // Kernels that do not count it by itself have no limit for it either.
        kernel: self::usage(files, "memory.kmem", u64::MAX).unwrap_or(Usage {
            limit: u64::MAX,
            ..Usage::default()
        }),
        use_hierarchy: files.number("memory.use_hierarchy") == Some(1),
        details,
    })
}

/// The four files that version 1 has for everything that is counted in bytes.
fn usage(files: &mut Files, prefix: &str, no_limit: u64) -> Option<Usage> {
    Some(Usage {
        current: files.number(&format!("{prefix}.usage_in_bytes"))?,
        peak: files.count(&format!("{prefix}.max_usage_in_bytes")),
        failures: files.count(&format!("{prefix}.failcnt")),
        limit: files
            .number(&format!("{prefix}.limit_in_bytes"))
            .unwrap_or(no_limit),
    })
}

fn pids(files: &mut Files) -> Option<Pids> {
    let current = files.number("pids.current")?;
    let limit = files
        .text("pids.max")
        .and_then(|text| parse::limit(text, 0));
    Some(Pids {
        current,
        limit: limit.unwrap_or(0),
    })
}

/// The files of the CFQ scheduler, which old kernels have; else those of the
/// throttling layer, which sees every request.
fn io(files: &mut Files) -> Io {
    let requests = files.devices("blkio.io_serviced_recursive");
    if requests.is_empty() {
        return Io {
            bytes: throttled(files, "blkio.throttle.io_service_bytes"),
            requests: throttled(files, "blkio.throttle.io_serviced"),
            ..Io::default()
        };
    }
    Io {
        bytes: files.devices("blkio.io_service_bytes_recursive"),
        requests,
        queued: files.devices("blkio.io_queued_recursive"),
        service_time: files.devices("blkio.io_service_time_recursive"),
        wait_time: files.devices("blkio.io_wait_time_recursive"),
        merged: files.devices("blkio.io_merged_recursive"),
        time: files.devices("blkio.time_recursive"),
        sectors: files.devices("blkio.sectors_recursive"),
    }
}

/// With the groups below where the kernel adds them up (Linux 5.2 and newer).
fn throttled(files: &mut Files, file: &str) -> Vec<IoEntry> {
    let recursive = format!("{file}_recursive");
    match files.text(&recursive).map(parse::device_counts) {
        Some(entries) => entries,
        None => files.devices(file),
    }
}

fn hugetlb(files: &mut Files, sizes: &[String]) -> Vec<(String, Usage)> {
    let usage = |size: &String| {
        let usage = self::usage(files, &format!("hugetlb.{size}"), 0)?;
        Some((size.clone(), usage))
    };
    sizes.iter().filter_map(usage).collect()
}
