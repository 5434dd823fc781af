// SPDX-License-Identifier: Apache-2.0
//! Where the unified hierarchy keeps which figure. All of its files count the
//! groups below as well.

use super::{Cpu, Files, Io, Memory, Pids, Stats, Usage, parse};

/// What hosts take for no limit (protocol section 12.2).
const NO_LIMIT: u64 = i64::MAX as u64;

pub(super) fn read(files: &mut Files, huge_page_sizes: &[String]) -> Stats {
    Stats {
        cpu: files.text("cpu.stat").map(cpu),
        memory: memory(files),
        pids: pids(files),
        io: files.text("io.stat").map(|text| Io {
            bytes: parse::io_stat(text),
            ..Io::default()
        }),
        hugetlb: hugetlb(files, huge_page_sizes),
    }
}

fn cpu(text: &str) -> Cpu {
    let mut cpu = Cpu::default();
    for (key, value) in parse::pairs(text) {
        let nanoseconds = value.saturating_mul(1000);
        match key {
            "usage_usec" => cpu.total = nanoseconds,
            "user_usec" => cpu.user = nanoseconds,
            "system_usec" => cpu.kernel = nanoseconds,
            "nr_periods" => cpu.periods = value,
            "nr_throttled" => cpu.throttled_periods = value,
            "throttled_usec" => cpu.throttled_time = nanoseconds,
            _ => {}
        }
    }
    cpu
}

fn memory(files: &mut Files) -> Option<Memory> {
    let current = files.number("memory.current")?;
    let details = files.pairs("memory.stat").unwrap_or_default();
    let cache = details.iter().find(|(key, _)| key == "file");
    Some(Memory {
        cache: cache.map_or(0, |(_, bytes)| *bytes),
        usage: Usage {
            current,
            // As old as Linux 5.19; the peak of swap is younger still.
            peak: files.count("memory.peak"),
            failures: 0,
            limit: limit(files, "memory.max", NO_LIMIT),
        },
        swap: swap(files),
        kernel: Usage {
            limit: u64::MAX,
            ..Usage::default()
        },
        use_hierarchy: false,
        details,
    })
}

fn swap(files: &mut Files) -> Option<Usage> {
    Some(Usage {
        current: files.number("memory.swap.current")?,
        peak: files.count("memory.swap.peak"),
        failures: event(files, "memory.swap.events", "fail"),
        limit: limit(files, "memory.swap.max", NO_LIMIT),
    })
}

fn pids(files: &mut Files) -> Option<Pids> {
    Some(Pids {
        current: files.number("pids.current")?,
        limit: limit(files, "pids.max", 0),
    })
}

fn hugetlb(files: &mut Files, sizes: &[String]) -> Vec<(String, Usage)> {
    let usage = |size: &String| {
        let usage = Usage {
            current: files.number(&format!("hugetlb.{size}.current"))?,
            peak: 0,
            failures: event(files, &format!("hugetlb.{size}.events"), "max"),
            limit: limit(files, &format!("hugetlb.{size}.max"), NO_LIMIT),
        };
        Some((size.clone(), usage))
    };
    sizes.iter().filter_map(usage).collect()
}

fn limit(files: &mut Files, file: &str, unlimited: u64) -> u64 {
    let limit = files
        .text(file)
        .and_then(|text| parse::limit(text, unlimited));
    limit.unwrap_or(unlimited)
}

fn event(files: &mut Files, file: &str, key: &str) -> u64 {
    files.text(file).map_or(0, |text| parse::value(text, key))
}
