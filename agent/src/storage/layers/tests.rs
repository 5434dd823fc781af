// SPDX-License-Identifier: Apache-2.0
//! Groups of layers as hosts send them, and as they should not.

use super::super::StoragePlan;
use super::*;
use protocols::agent::Storage;

fn layer(driver: &str, source: &str, fstype: &str, place: &str, options: &[&str]) -> Storage {
    Storage {
        driver: driver.into(),
        source: source.into(),
        fstype: fstype.into(),
        mount_point: place.into(),
        options: options.iter().map(|o| (*o).to_owned()).collect(),
        ..Storage::default()
    }
}

fn upper() -> Storage {
    layer(
        "blk",
        "/dev/vdb",
        "ext4",
        "/run/x/rootfs",
        &[MARK, "X-kata.overlay-upper"],
    )
}

fn lower(number: &str) -> Storage {
    let number = format!("X-kata.partition-number={number}");
    let options = [
        MARK,
        "ro",
        "X-kata.overlay-lower",
        "X-kata.gpt-partitioned=true",
        &number,
    ];
    layer("blk", "02/00", "erofs", "/run/x/lower", &options)
}

fn plan(storages: &[Storage]) -> Result<Vec<StoragePlan>, StorageError> {
    StoragePlan::all_from_wire(storages, Some(Path::new("/run/kata-containers/c1")))
}

fn layers(storages: &[Storage]) -> Layers {
    let claims: Vec<_> = storages
        .iter()
        .map(|storage| Claim::new(storage, None).unwrap())
        .collect();
    Layers::plan(&claims, None).unwrap().1
}

#[test]
fn a_group_is_one_storage_in_the_place_of_its_first_member() {
    let before = layer("local", "local", "local", "/run/before", &[]);
    let after = layer("local", "local", "local", "/run/after", &[]);
    let plans = plan(&[before, lower("2"), upper(), after, lower("1")]).unwrap();
    let places: Vec<_> = plans.iter().map(|plan| plan.mount_point()).collect();
    let expected = ["/run/before", "/run/x/rootfs", "/run/after"];
    assert_eq!(places, expected.map(Path::new));
}

#[test]
fn partitions_are_the_order_and_without_an_upper_layer_the_first_lower_says_where() {
    let two = [lower("2"), lower("1")];
    let numbers: Vec<_> = layers(&two)
        .lowers
        .iter()
        .map(|l| l.place.partition)
        .collect();
    assert_eq!(numbers, [Some(1), Some(2)]);
    let plans = plan(&two).unwrap();
    assert_eq!(plans[0].mount_point(), Path::new("/run/x/lower"));
    let whole = |source| layer(DRIVER, source, "erofs", "/run/x", &[]);
    let unsorted = layers(&[whole("03"), whole("0:2"), whole("02")]);
    let sources: Vec<_> = unsorted
        .lowers
        .iter()
        .map(|l| l.place.disk.to_string())
        .collect();
    assert_eq!(sources, ["03.0", "0:2", "02.0"]);
}

#[test]
fn many_layers_are_named_by_descriptor() {
    let options = |count: usize, id: &str| {
        let storages: Vec<_> = (1..=count).map(|n| lower(&n.to_string())).collect();
        let claims: Vec<_> = storages
            .iter()
            .map(|storage| Claim::new(storage, None).unwrap())
            .collect();
        let bundle = Path::new("/run/kata-containers").join(id);
        let layers = Layers::plan(&claims, Some(&bundle)).unwrap().1;
        let open = || OwnedFd::from(std::fs::File::open("/").unwrap());
        let held: Vec<_> = std::iter::repeat_with(open).take(count).collect();
        let upper = bundle.join("multi-layer/upper");
        layers.options(&held, &upper.join("upper"), &upper.join("work"))
    };
    let few = options(2, "c1");
    let expected = "lowerdir=/run/kata-containers/c1/multi-layer/lower-0:/run/kata-containers/c1/multi-layer/lower-1,upperdir=";
    assert!(few.starts_with(expected), "{few}");
    // Whatever the length of the id, and whatever is just too much.
    let long = "x".repeat(200);
    for count in 1..=128 {
        for id in ["c1", &long] {
            let data = options(count, id);
            assert!(data.len() <= LONGEST, "{count} {id}");
        }
    }
    assert!(options(128, &long).starts_with("lowerdir=/proc/self/fd/"));
}

#[test]
fn partitions_have_the_kernels_names() {
    let node = |disk: &str| partition_node(Path::new(disk), 3);
    assert_eq!(node("/dev/vda"), Path::new("/dev/vda3"));
    assert_eq!(node("/dev/nvme0n1"), Path::new("/dev/nvme0n1p3"));
}

#[test]
fn what_is_no_group_is_bad_input() {
    let with = |mut storage: Storage, word: &str| {
        storage.options.push(word.into());
        storage
    };
    let hash = "ac87db56303c9c1da433d7209b5a6ef3e4779df141200cbd7c157dcb8dd89c42";
    let verified = |more: &str| {
        let words = format!("X-kata.dmverity-enabled=true,X-kata.dmverity.hashoffset=8192{more}");
        with(lower("1"), &words)
    };
    assert!(plan(&[verified(&format!(",X-kata.dmverity.roothash={hash}"))]).is_ok());
    for (name, bad) in [
        ("no lower layer", vec![upper()]),
        ("two upper layers", vec![upper(), upper(), lower("1")]),
        (
            "an upper layer that is not ext4",
            vec![
                lower("1"),
                layer(
                    "blk",
                    "03",
                    "xfs",
                    "/run/x",
                    &[MARK, "X-kata.overlay-upper"],
                ),
            ],
        ),
        (
            "a lower layer that is not erofs",
            vec![layer(
                "blk",
                "03",
                "ext4",
                "/run/x",
                &[MARK, "X-kata.overlay-lower"],
            )],
        ),
        (
            "a layer of another kind",
            vec![layer("blk", "03", "xfs", "/run/x", &[MARK])],
        ),
        (
            "a layer on another kind of device",
            vec![layer("nvdimm", "/dev/pmem0", "erofs", "/run/x", &[MARK])],
        ),
        ("both sides", vec![with(lower("1"), "X-kata.overlay-upper")]),
        (
            "an unknown word",
            vec![with(lower("1"), "X-kata.colour=blue")],
        ),
        ("a number that is none", vec![lower("0")]),
        (
            "a number for no table",
            vec![layer(
                "blk",
                "02",
                "erofs",
                "/run/x",
                &[MARK, "X-kata.partition-number=1"],
            )],
        ),
        (
            "no number",
            vec![layer(
                "blk",
                "02",
                "erofs",
                "/run/x",
                &[MARK, "X-kata.gpt-partitioned=true"],
            )],
        ),
        (
            "a path that leaves",
            vec![with(lower("1"), "X-kata.mkdir.path={{ mount 1 }}/../x")],
        ),
        ("no root hash", vec![verified("")]),
        (
            "a layer that is changed and verified",
            vec![
                lower("1"),
                with(
                    upper(),
                    &format!(
                        "X-kata.dmverity-enabled=true,X-kata.dmverity.hashoffset=8192,X-kata.dmverity.roothash={hash}"
                    ),
                ),
            ],
        ),
        (
            "words of a layer on what is none",
            vec![layer(
                "blk",
                "02",
                "ext4",
                "/run/x",
                &["X-kata.overlay-lower"],
            )],
        ),
    ] {
        let error = plan(&bad).expect_err(name);
        assert!(error.is_bad_input(), "{name}: {error}");
    }
}
