// SPDX-License-Identifier: Apache-2.0
//! Hosts that go away in the middle of a request, over vsock; the service's stories do it more often.

use tests::figures::Figures;
use tests::{Vm, cuts, vm_story};

#[test]
fn sixty_disconnects_do_nothing_by_halves() {
    vm_story(async {
        let vm = Vm::boot(|g| g).await;
        vm.create_sandbox(|_| ()).await;
        let probe = vm.probe("probe").await;
        vm.sh("warm-up", "true").await.ok();
        let before = Figures::of(&probe, "").await;
        cuts::rounds(&vm, 60).await;
        let after = Figures::of(&probe, "").await;
        // All but descriptors, which the service's story counts: the host's vsock device does not tell the guest of a connection that
        // was closed with an unread answer.
        let counts = |figures: &Figures| {
            let lines = figures.counts.lines();
            let kept = lines.filter(|line| !line.starts_with("descriptors"));
            kept.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(counts(&after), counts(&before));
    });
}
