// SPDX-License-Identifier: Apache-2.0
//! Groups made of ordinary files.

use super::*;
use std::path::Path;

fn files_at(path: &Path) -> Option<Files> {
    Files::open(&Hierarchy::open(path).ok()?, "")
}

fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (file, content) in files {
        std::fs::write(dir.path().join(file), content).unwrap();
    }
    dir
}

fn sizes() -> Vec<String> {
    ["2MB", "1GB"].map(str::to_owned).to_vec()
}

fn read_v2(files: &[(&str, &str)]) -> Stats {
    let dir = directory(files);
    v2::read(&mut files_at(dir.path()).unwrap(), &sizes())
}

fn read_v1(files: &[(&str, &str)]) -> Stats {
    let dir = directory(files);
    // As if all controllers were mounted together.
    v1::read(|_| files_at(dir.path()), &sizes())
}

fn usage(current: u64, peak: u64, failures: u64, limit: u64) -> Usage {
    Usage {
        current,
        peak,
        failures,
        limit,
    }
}

#[test]
fn a_group_of_version_2() {
    let stats = read_v2(&[
        (
            "cpu.stat",
            "usage_usec 3000\nuser_usec 2000\nsystem_usec 1000\nnice_usec 9\nnr_periods 5\nnr_throttled 4\nthrottled_usec 70\n",
        ),
        ("memory.current", "4096\n"),
        ("memory.peak", "8192\n"),
        ("memory.max", "max\n"),
        ("memory.stat", "anon 10\nfile 2048\ninactive_file 1024\n"),
        ("memory.swap.current", "1\n"),
        ("memory.swap.peak", "2\n"),
        ("memory.swap.max", "3\n"),
        ("memory.swap.events", "high 0\nmax 9\nfail 4\n"),
        ("pids.current", "7\n"),
        ("pids.max", "max\n"),
        (
            "io.stat",
            "253:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n",
        ),
        ("hugetlb.2MB.current", "2097152\n"),
        ("hugetlb.2MB.max", "4194304\n"),
        ("hugetlb.2MB.events", "max 6\n"),
    ]);
    let memory = stats.memory.unwrap();
    assert_eq!(memory.usage, usage(4096, 8192, 0, i64::MAX as u64));
    assert_eq!(memory.swap, Some(usage(1, 2, 4, 3)));
    assert_eq!(memory.kernel, usage(0, 0, 0, u64::MAX));
    assert!(memory.details.contains(&("inactive_file".to_owned(), 1024)));
    assert_eq!((memory.cache, memory.use_hierarchy), (2048, false));
    let pids = Pids {
        current: 7,
        limit: 0,
    };
    assert_eq!(stats.pids, Some(pids));
    assert_eq!(stats.io.unwrap().bytes.len(), 6);
    let expected = [("2MB".to_owned(), usage(2_097_152, 0, 6, 4_194_304))];
    assert_eq!(stats.hugetlb, expected);
    let cpu = stats.cpu.unwrap();
    assert_eq!(
        (cpu.total, cpu.user, cpu.kernel),
        (3_000_000, 2_000_000, 1_000_000)
    );
    assert_eq!((cpu.periods, cpu.throttled_periods), (5, 4));
}

/// The reference looks for the key that only version 1 has.
#[test]
fn bug_throttled_time_on_version_2() {
    let stats = read_v2(&[("cpu.stat", "usage_usec 1\nthrottled_usec 70\n")]);
    assert_eq!(stats.cpu.unwrap().throttled_time, 70_000);
}

/// The reference looks for `cache`, which is called `file` on version 2.
#[test]
fn bug_page_cache_on_version_2() {
    let stats = read_v2(&[("memory.current", "9000\n"), ("memory.stat", "file 8192\n")]);
    assert_eq!(stats.memory.unwrap().cache, 8192);
}

/// The reference panics.
#[test]
fn bug_missing_controllers_leave_their_part_out() {
    assert_eq!(read_v2(&[]), Stats::default());
    let only_cpu = read_v2(&[("cpu.stat", "usage_usec 1\n")]);
    assert!(only_cpu.cpu.is_some() && only_cpu.memory.is_none() && only_cpu.pids.is_none());
    assert!(only_cpu.io.is_none() && only_cpu.hugetlb.is_empty());
    assert_eq!(v1::read(|_| None, &sizes()), Stats::default());
    let no_swap = read_v2(&[("memory.current", "1\n")]).memory.unwrap();
    assert_eq!(no_swap.swap, None);
}

#[test]
fn a_group_of_version_1() {
    let stats = read_v1(&[
        ("cpuacct.usage", "3000\n"),
        ("cpuacct.stat", "user 2\nsystem 1\n"),
        ("cpuacct.usage_percpu", "1000 2000 \n"),
        (
            "cpu.stat",
            "nr_periods 5\nnr_throttled 4\nthrottled_time 70\n",
        ),
        ("memory.usage_in_bytes", "4096\n"),
        ("memory.max_usage_in_bytes", "8192\n"),
        ("memory.failcnt", "3\n"),
        ("memory.limit_in_bytes", "9223372036854771712\n"),
        ("memory.memsw.usage_in_bytes", "5000\n"),
        ("memory.memsw.limit_in_bytes", "6000\n"),
        ("memory.kmem.usage_in_bytes", "11\n"),
        ("memory.use_hierarchy", "1\n"),
        ("memory.stat", "cache 2048\ntotal_inactive_file 1024\n"),
        ("pids.current", "7\n"),
        ("pids.max", "100\n"),
        (
            "blkio.throttle.io_service_bytes",
            "8:0 Read 1\n8:0 Total 1\nTotal 1\n",
        ),
        ("blkio.throttle.io_serviced", "8:0 Read 1\n"),
        ("hugetlb.1GB.usage_in_bytes", "0\n"),
        ("hugetlb.1GB.failcnt", "2\n"),
    ]);
    let cpu = stats.cpu.unwrap();
    assert_eq!(cpu.per_cpu, [1000, 2000]);
    assert_eq!(
        (cpu.total, cpu.user, cpu.kernel, cpu.throttled_time),
        (3000, 20_000_000, 10_000_000, 70)
    );
    let memory = stats.memory.unwrap();
    assert_eq!(
        memory.usage,
        usage(4096, 8192, 3, 9_223_372_036_854_771_712)
    );
    assert_eq!(memory.swap, Some(usage(5000, 0, 0, 6000)));
    assert_eq!(memory.kernel, usage(11, 0, 0, u64::MAX));
    assert_eq!((memory.cache, memory.use_hierarchy), (2048, true));
    let pids = Pids {
        current: 7,
        limit: 100,
    };
    assert_eq!(stats.pids, Some(pids));
    let io = stats.io.unwrap();
    assert_eq!((io.bytes.len(), io.requests.len()), (2, 1));
    assert_eq!(stats.hugetlb, [("1GB".to_owned(), usage(0, 0, 2, 0))]);
}

#[test]
fn io_of_version_1_is_cfqs_where_it_counts() {
    let cfq = ("blkio.io_serviced_recursive", "8:0 Read 5\n");
    let throttle = ("blkio.throttle.io_serviced", "8:0 Read 9\n");
    let time = ("blkio.time_recursive", "8:0 77\n");
    let io = read_v1(&[cfq, throttle, time]).io.unwrap();
    assert_eq!((io.requests[0].value, io.time[0].value), (5, 77));
    // The file is there, the scheduler is not in use.
    let idle = ("blkio.io_serviced_recursive", "Total 0\n");
    let recursive = ("blkio.throttle.io_serviced_recursive", "8:0 Read 10\n");
    let io = read_v1(&[idle, throttle, recursive]).io.unwrap();
    assert_eq!((io.requests[0].value, io.time.len()), (10, 0));
}

#[test]
fn files_longer_than_the_buffer_are_whole() {
    let lines: String = (0..3000).map(|n| format!("key{n} {n}\n")).collect();
    assert!(lines.len() > 4096 * 4);
    let stats = read_v2(&[("memory.current", "1\n"), ("memory.stat", &lines)]);
    let details = stats.memory.unwrap().details;
    assert_eq!(details.len(), 3000);
    assert_eq!(details.last().unwrap(), &("key2999".to_owned(), 2999));
}

#[test]
fn hostile_content_is_no_content() {
    let huge = "9".repeat(MAX_FILE * 2);
    let stats = read_v2(&[
        (
            "cpu.stat",
            "usage_usec 99999999999999999999999\nuser_usec\n \n\n",
        ),
        ("memory.current", &huge),
        ("pids.current", "-1\n"),
        ("pids.max", "\u{0}\n"),
        ("io.stat", "::: =\n:\n8:0 rbytes=\n"),
    ]);
    assert_eq!(stats.cpu, Some(Cpu::default()));
    assert_eq!((stats.memory, stats.pids), (None, None));
    assert_eq!(stats.io, Some(Io::default()));
}

#[test]
fn no_descriptor_stays_open() {
    let dir = directory(&[("cpu.stat", "usage_usec 1\n"), ("memory.current", "1\n")]);
    // Other tests of this process open files too: only ours are counted.
    let open = || {
        let fds = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let targets = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        targets.filter(|path| path.starts_with(dir.path())).count()
    };
    for _ in 0..10 {
        let mut files = files_at(dir.path()).unwrap();
        let _ = v2::read(&mut files, &sizes());
    }
    assert_eq!(open(), 0);
}
