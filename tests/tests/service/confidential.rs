// SPDX-License-Identifier: Apache-2.0
//! What a confidential guest asks its data hub for: images, encrypted volumes, secrets; and hubs that are not there, lie, hang, die.

use protobuf::Message;
use protocols::agent::{FSGroup, Storage};
use protocols::oci;
use tests::hub::{Call, images, secrets};
use tests::service::Inside;
use tests::{Code, Hub, Service, expect_refusal, service_story};

const IMAGE: &str = "example.org/busybox:1";

/// What a host sends for a container whose image is pulled in the guest.
fn pulled(id: &str, image: &str) -> Storage {
    let place = format!("/run/kata-containers/{id}/rootfs");
    let mut storage = tests::vm::storage("image_guest_pull", image, "overlay", &place, &[]);
    let json = r#"{"metadata":{"io.kubernetes.cri.container-type":"container"}}"#;
    storage.driver_options = vec![format!("image_guest_pull={json}")];
    storage
}

/// What is left of bundles and of what hubs mount, with `ids` of containers that are there.
fn expect_only(inside: &Inside, ids: &[&str]) {
    let left = "cd /run/kata-containers 2>/dev/null || exit 0; ls | grep -v -e ^shared$ -e ^image$ -e ^sandbox$ || true";
    let mut bundles: Vec<_> = ids.to_vec();
    bundles.sort_unstable();
    assert_eq!(inside.sh(left).lines().collect::<Vec<_>>(), bundles);
    let mounts = inside.sh("cat /proc/mounts");
    let roots = mounts.matches("/run/kata-containers/").count();
    assert!(
        roots >= ids.len() && (!ids.is_empty() || roots == 0),
        "{mounts}"
    );
}

#[test]
fn an_image_is_pulled_and_runs() {
    service_story(async {
        let agent = Service::start().await;
        let (hub, inside) = (Hub::start(&agent).await, agent.inside());
        for _ in 0..2 {
            // The root that the host names is not there, and does not matter.
            let c = agent.container("c1").storage(pulled("c1", IMAGE));
            let c = c.root("/run/kata-containers/shared/containers/c1/rootfs");
            let c = c.sh("cat /etc/hostname; read x").start().await;
            let call = Call::Pull {
                image: IMAGE.to_owned(),
                bundle: "/run/kata-containers/c1".to_owned(),
            };
            assert_eq!(hub.calls(), [call]);
            expect_only(&inside, &["c1"]);
            c.write(b"\n").await;
            assert_eq!(c.output().await.stdout, "image\n");
            c.remove().await;
            expect_only(&inside, &[]);
        }
        hub.stop().await;
    });
}

/// The reference's agent panics, and a volume that was to be encrypted is silently not mounted at all.
#[test]
fn bug_without_a_hub_nothing_is_pulled_and_nothing_mounted() {
    service_story(async {
        let agent = Service::start().await;
        let inside = agent.inside();
        let disk = disk_node(&inside, "254 16");
        for storage in [pulled("c1", IMAGE), encrypted(&disk)] {
            let result = agent.container("c1").storage(storage).try_create().await;
            let result = result.map(|c| c.id().to_owned());
            expect_refusal(result, Code::INTERNAL, "No confidential-data-hub");
            agent.expect_alive().await;
            expect_only(&inside, &[]);
        }
        let store = agent
            .container("c1")
            .linux(|l| l.Devices.push(trusted("b", 16)));
        let result = store.try_create().await.map(|c| c.id().to_owned());
        expect_refusal(result, Code::INTERNAL, "No confidential-data-hub");
        // Without one, what is sealed is just text.
        let c = agent.container("c1").env("A=sealed.a").sh("echo $A").run();
        assert_eq!(c.await.ok(), "sealed.a");
        // The hub may come up later than the agent.
        let hub = Hub::start(&agent).await;
        let c = agent.container("c1").storage(pulled("c1", IMAGE));
        c.sh("true").run().await.ok();
        hub.stop().await;
    });
}

#[test]
fn a_hub_that_lies_refuses_or_dies_leaves_nothing() {
    service_story(async {
        let agent = Service::start().await;
        let inside = agent.inside();
        let attempt = async |image: &str, part: &str| {
            let c = agent.container("c1").storage(pulled("c1", image));
            let result = c.try_create().await.map(|c| c.id().to_owned());
            expect_refusal(result, Code::INTERNAL, part);
            agent.expect_alive().await;
            expect_only(&inside, &[]);
        };
        let dying = Hub::dying(&agent);
        attempt(IMAGE, "broke off PullImage").await;
        dying.abort();
        let hub = Hub::start(&agent).await;
        attempt(
            images::IMAGINARY,
            "mounted nothing at /run/kata-containers/c1/rootfs",
        )
        .await;
        attempt(
            images::FORBIDDEN,
            "refused PullImage: the image is not signed",
        )
        .await;
        // It had mounted a part.
        attempt(images::BROKEN, "a layer is broken").await;
        // The same hub, and the same id, after all that.
        let c = agent.container("c1").storage(pulled("c1", IMAGE));
        c.sh("true").run().await.ok();
        // What it pulled does not outlive a container that fails later.
        let c = agent.container("c1").storage(pulled("c1", IMAGE));
        let result = c.args(&["/no/such/program"]).try_create().await;
        if let Ok(c) = result {
            assert!(c.try_start().await.is_err() || c.wait().await != 0);
            c.remove().await;
        }
        expect_only(&inside, &[]);
        hub.stop().await;
    });
}

#[test]
fn a_hub_that_hangs_has_its_time_and_holds_nobody_up() {
    service_story(async {
        let words = "agent.image_pull_timeout=3 agent.cdh_api_timeout=1";
        let agent = Service::start_with(words).await;
        let (hub, inside) = (Hub::start(&agent).await, agent.inside());
        let slow = agent
            .container("slow")
            .storage(pulled("slow", images::SLOW));
        let slow = tokio::spawn(async move { slow.try_create().await.map(drop) });
        hub.called().await;
        // Meanwhile everything else goes on, other pulls too.
        agent.expect_alive().await;
        let c = agent.container("c1").storage(pulled("c1", IMAGE));
        c.sh("true").run().await.ok();
        let result = slow.await.expect("the attempt ends");
        expect_refusal(
            result,
            Code::INTERNAL,
            "did not answer PullImage within 3 s",
        );
        expect_only(&inside, &[]);
        // Secrets are waited for once: the second would double the time.
        hub.calls();
        let c = agent.container("c1").env(&format!("A={}", secrets::SLOW));
        let c = c.env("B=sealed.b").sh("echo $A $B").run().await;
        assert_eq!(c.ok(), "sealed.slow sealed.b");
        assert_eq!(hub.calls(), [Call::Unseal(secrets::SLOW.to_owned())]);
        hub.stop().await;
    });
}

#[test]
fn a_pull_goes_on_without_the_host() {
    service_story(async {
        let agent = Service::start().await;
        let (hub, inside) = (Hub::start(&agent).await, agent.inside());
        let c = agent.container("cut").storage(pulled("cut", images::SLOW));
        let request = c.args(&["sleep", "1000"]).into_request();
        let bytes = request.write_to_bytes().expect("it encodes");
        {
            let mut wire = agent.wire().await;
            wire.send_request("grpc.AgentService", "CreateContainer", &bytes)
                .await;
            hub.called().await;
        }
        let again = agent.rpc().create_container(&request).await;
        expect_refusal(again, Code::ALREADY_EXISTS, "cut");
        hub.open();
        let c = tests::Container::known(&agent, "cut");
        while c.try_start().await.is_err() {
            agent.expect_alive().await;
        }
        assert_eq!(c.sh("echo whole").await.ok(), "whole");
        assert_eq!(hub.calls().len(), 1);
        c.kill_and_remove().await;
        expect_only(&inside, &[]);
        hub.stop().await;
    });
}

/// A sandbox container runs the guest's own image, as that says, and the hub is not asked.
#[test]
fn a_sandbox_runs_the_guest_s_pause_image() {
    service_story(async {
        let agent = Service::start().await;
        let inside = agent.inside();
        let sandbox = |id: &str| {
            let mut storage = pulled(id, "pause");
            let json = r#"{"metadata":{"io.kubernetes.cri.container-type":"sandbox"}}"#;
            storage.driver_options = vec![format!("image_guest_pull={json}")];
            let key = "io.kubernetes.cri.container-type".to_owned();
            agent
                .container(id)
                .storage(storage)
                .spec(|s| drop(s.Annotations.insert(key, "sandbox".to_owned())))
        };
        let result = sandbox("pod").try_create().await.map(drop);
        expect_refusal(result, Code::INTERNAL, "no pause image");
        expect_only(&inside, &[]);
        let config = r#"{"process":{"args":["/bin/busybox-pause","sh","-c","echo $A $$; id -u"],"env":["A=paused"],"user":{"uid":65535,"gid":65535}}}"#;
        inside.sh(&format!(
            "dir=/run/kata-extensions/coco/pause_bundle; mkdir -p $dir/rootfs/bin; cp /run/image/bin/busybox $dir/rootfs/bin/busybox-pause
            echo '{config}' > $dir/config.json"
        ));
        let c = sandbox("pod").sh("echo the host\\'s").create().await;
        let files = inside.sh("cd /run/kata-containers/pod; find . -type f | sort");
        assert_eq!(files, "./config.json\n./rootfs/bin/busybox-pause");
        c.start().await;
        let output = c.output().await;
        // The applets are not there: what runs is the one program, and what its shell finds in itself.
        assert_eq!(
            output.stdout.lines().next(),
            Some("paused 1"),
            "{}",
            output.stderr
        );
        c.remove().await;
        expect_only(&inside, &[]);
    });
}

/// A node that looks like a disk, below /dev where the agent wants it.
fn disk_node(inside: &Inside, number: &str) -> String {
    inside.sh(&format!(
        "mountpoint -q /dev/shm/disks || {{ mkdir -p /dev/shm; mount -t tmpfs disks /dev/shm; mkdir /dev/shm/disks; mount -t tmpfs disks /dev/shm/disks; }}
        mknod '/dev/shm/disks/{number}' b {number}"
    ));
    format!("/dev/shm/disks/{number}")
}

fn encrypted(node: &str) -> Storage {
    let place = "/run/kata-containers/sandbox/storage/empty";
    let mut storage = tests::vm::storage("blk", node, "ext4", place, &[]);
    storage.driver_options = vec![
        "create_filesystem".into(),
        "encryption_key=ephemeral".into(),
    ];
    let mut group = FSGroup::new();
    group.group_id = 1234;
    storage.fs_group = Some(group).into();
    storage
}

fn trusted(kind: &str, minor: i64) -> oci::LinuxDevice {
    let mut device = oci::LinuxDevice::new();
    device.Path = "/dev/trusted_store".to_owned();
    device.Type = kind.to_owned();
    (device.Major, device.Minor) = (254, minor);
    device.FileMode = 0o600;
    device
}

/// Exactly what the protocol says; a hub may insist on each word.
fn secure_mount(disk: &str, mkfs: &str, integrity: &str, place: &str) -> Call {
    let options = [
        ("deviceId", disk),
        ("sourceType", "empty"),
        ("targetType", "fileSystem"),
        ("filesystemType", "ext4"),
        ("mkfsOpts", mkfs),
        ("encryptionType", "luks2"),
        ("dataIntegrity", integrity),
    ];
    Call::Mount {
        volume_type: "block-device".to_owned(),
        options: options.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        flags: Vec::new(),
        mount_point: place.to_owned(),
    }
}

const VOLUME: &str = "-O ^has_journal -m 0 -i 163840 -I 128";

#[test]
fn an_empty_disk_becomes_an_encrypted_volume() {
    service_story(async {
        let agent = Service::start().await;
        let (hub, inside) = (Hub::start(&agent).await, agent.inside());
        let place = "/run/kata-containers/sandbox/storage/empty";
        let node = disk_node(&inside, "254 16");
        let c = agent.container("c1").storage(encrypted(&node));
        let c = c
            .bind("/data", place)
            .sh("touch /data/x; stat -c %g /data/x");
        assert_eq!(c.run().await.ok(), "1234");
        assert_eq!(hub.calls(), [secure_mount("254:16", VOLUME, "true", place)]);
        expect_only(&inside, &[]);
        // One that fails late is taken back.
        let node = disk_node(&inside, "254 13");
        let c = agent.container("c1").storage(encrypted(&node));
        let result = c.try_create().await.map(drop);
        expect_refusal(
            result,
            Code::INTERNAL,
            "refused SecureMount: the disk is broken",
        );
        expect_only(&inside, &[]);
        assert_eq!(inside.sh(&format!("test -e {place} || echo gone")), "gone");
        // Where something is mounted already the hub is not asked.
        hub.calls();
        inside.sh(&format!("mkdir -p {place}; mount -t tmpfs other {place}"));
        let c = agent.container("c1").storage(encrypted(&node));
        let result = c.try_create().await.map(drop);
        expect_refusal(result, Code::INTERNAL, "mounted at");
        assert_eq!(hub.calls(), []);
        inside.sh(&format!("umount {place}"));
        hub.stop().await;
    });
}

/// The undo of the request that failed came too early for that.
#[test]
fn what_a_hub_mounts_after_its_time_is_taken_away() {
    service_story(async {
        let words = "agent.image_pull_timeout=1 agent.cdh_api_timeout=1";
        let agent = Service::start_with(words).await;
        let (hub, inside) = (Hub::start(&agent).await, agent.inside());
        let slow = disk_node(&inside, "254 14");
        let node = disk_node(&inside, "254 16");
        let volume = async |id: &str, node: &str| {
            let c = agent.container(id).storage(encrypted(node));
            c.sh("true").try_create().await
        };
        let image = async |image: &str| {
            let c = agent.container("c2").storage(pulled("c2", image));
            c.sh("true").try_create().await
        };
        let late = tokio::join!(volume("c1", &slow), image(images::SLOW));
        let part = "did not answer SecureMount within 1 s";
        expect_refusal(late.0.map(drop), Code::INTERNAL, part);
        let part = "did not answer PullImage within 1 s";
        expect_refusal(late.1.map(drop), Code::INTERNAL, part);
        expect_only(&inside, &[]);
        // Nobody else has the places until then.
        let part = "may still mount something at";
        let early = tokio::join!(volume("c3", &node), image(IMAGE));
        expect_refusal(early.0.map(drop), Code::INTERNAL, part);
        expect_refusal(early.1.map(drop), Code::INTERNAL, part);
        hub.open();
        hub.mounted(2).await;
        let (mut volume_due, mut image_due) = (true, true);
        while volume_due || image_due {
            let all = tokio::join!(volume("c3", &node), image(IMAGE));
            for (result, due) in [(all.0, &mut volume_due), (all.1, &mut image_due)] {
                match result {
                    Ok(c) => {
                        c.remove().await;
                        *due = false;
                    }
                    Err(refusal) => expect_refusal::<()>(Err(refusal), Code::INTERNAL, part),
                }
            }
        }
        expect_only(&inside, &[]);
        hub.stop().await;
    });
}

#[test]
fn pulled_images_lie_in_the_trusted_store() {
    service_story(async {
        let agent = Service::start_with("agent.secure_storage_integrity=false").await;
        let (hub, inside) = (Hub::start(&agent).await, agent.inside());
        let place = "/run/kata-containers/image/";
        let expected = |disk| secure_mount(disk, "-E lazy_journal_init", "false", place);
        let stored = |id: &str, minor| {
            let c = agent.container(id).storage(pulled(id, IMAGE));
            c.linux(move |l| l.Devices.push(trusted("b", minor)))
        };
        let result = stored("c1", 13).try_create().await.map(drop);
        expect_refusal(result, Code::INTERNAL, "the disk is broken");
        assert_eq!(hub.calls(), [expected("254:13")]);
        expect_only(&inside, &[]);
        let odd = agent
            .container("c1")
            .linux(|l| l.Devices.push(trusted("c", 1)));
        let result = odd.try_create().await.map(drop);
        expect_refusal(result, Code::INVALID_ARGUMENT, "no block device");
        // Before the pull, once for the pod, and until its end.
        stored("c1", 16).sh("true").run().await.ok();
        stored("c2", 16).sh("true").run().await.ok();
        let calls = hub.calls();
        assert_eq!(calls.len(), 3, "{calls:?}");
        assert_eq!(calls[0], expected("254:16"));
        assert!(matches!(calls[1], Call::Pull { .. }));
        let mounted = inside.sh("grep -c ' /run/kata-containers/image ' /proc/mounts");
        assert_eq!(mounted, "1");
        hub.stop().await;
    });
}

#[test]
fn the_container_sees_secrets_in_the_clear() {
    service_story(async {
        let agent = Service::start().await;
        let (hub, inside) = (Hub::start(&agent).await, agent.inside());
        let shared = "/run/kata-containers/shared/containers";
        inside.sh(&format!(
            "mkdir -p {shared}/c1-secret/..2024/ {shared}/c1-hosts; cd {shared}/c1-secret
            ln -s ..2024 ..data; printf sealed.token > ..2024/token; chmod 440 ..2024/token; printf plain > ..2024/user
            printf sealed.forbidden > ..2024/no; printf sealed.binary > ..2024/blob; ln -s /etc/passwd out
            for name in token user no blob; do ln -s ..data/$name $name; done
            printf sealed.hosts > {shared}/c1-hosts/hosts"
        ));
        let read = "echo $A/$B/$C; cd /secret; cat token user no; echo; stat -Lc %a token; wc -c < blob; cat /hosts/hosts";
        let expected = "open a=b/sealed.forbidden/sealed.binary\nopen tokenplainsealed.forbidden\n440\n2\nsealed.hosts";
        for id in ["c1", "c2"] {
            let c = agent.container(id).env("A=sealed.a=b");
            let c = c.env("B=sealed.forbidden").env("C=sealed.binary");
            let c = c.bind("/secret", &format!("{shared}/c1-secret"));
            let c = c.bind("/hosts", &format!("{shared}/c1-hosts"));
            assert_eq!(c.sh(read).run().await.ok(), expected);
        }
        // The second container found the volume as the first had left it.
        let token = Call::Unseal("sealed.token".to_owned());
        let times = hub.calls().into_iter().filter(|call| *call == token);
        assert_eq!(times.count(), 1);
        assert!(agent.log().contains("'no' of"), "a warning names the file");
        assert!(agent.log().contains("B stays sealed"), "and the variable");
        hub.stop().await;
    });
}

#[test]
fn claims_about_images_that_cannot_be() {
    service_story(async {
        let agent = Service::start().await;
        let deep = format!(
            r#"{{"metadata":{}1{}}}"#,
            "[".repeat(9999),
            "]".repeat(9999)
        );
        let huge = format!(r#"{{"metadata":{{"a":"{}"}}}}"#, "x".repeat(100_000));
        for json in ["", "{", "null", r#"{"metadata":7}"#, &deep, &huge] {
            let mut storage = pulled("c1", IMAGE);
            storage.driver_options = vec![format!("image_guest_pull={json}")];
            let result = agent.container("c1").storage(storage).try_create().await;
            let result = result.map(|c| c.id().to_owned());
            expect_refusal(result, Code::INVALID_ARGUMENT, "image_guest_pull");
        }
        for image in ["", "a b", "a\nb"] {
            let c = agent.container("c1").storage(pulled("c1", image));
            let result = c.try_create().await.map(drop);
            expect_refusal(result, Code::INVALID_ARGUMENT, "no image reference");
        }
        let twice = agent.container("c1").storage(pulled("c1", IMAGE));
        let result = twice
            .storage(pulled("c1", "b"))
            .try_create()
            .await
            .map(drop);
        expect_refusal(result, Code::INVALID_ARGUMENT, "one image");
        let mut of_the_sandbox = protocols::agent::CreateSandboxRequest::new();
        of_the_sandbox.storages = vec![pulled("c1", IMAGE)];
        let result = agent.rpc().create_sandbox(&of_the_sandbox).await.map(drop);
        expect_refusal(result, Code::INVALID_ARGUMENT, "only a container");
        let mut odd = encrypted("/dev/vda");
        odd.driver_options = vec!["encryption_key=ephemeral".into()];
        let result = agent
            .container("c1")
            .storage(odd)
            .try_create()
            .await
            .map(drop);
        expect_refusal(result, Code::INVALID_ARGUMENT, "create_filesystem");
        agent.expect_alive().await;
    });
}
