//! Clauses about shapers.

use futures::future::BoxFuture;

use super::{Bench, all_fine, apply, events, observe, prepare, wait};
use crate::port::*;
use crate::shaper::*;

/// What is put is seen to the byte, changed where it is, announced, and gone when it is removed.
pub fn shapers_are_seen_as_they_were_put(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        prepare(bench).await;
        let mut events = events(bench);
        let shapers = [
            Shaper::new(125, 1 << 29, None),
            Shaper::new(1_250_000, 1 << 29, None),
            Shaper::new(1_250_000, 20_000, Some((2_500_000, 30_000))),
            Shaper::new(125_000_000, 1 << 29, Some((250_000_000, 65_536))),
            Shaper::new(12_500_000_000, 1 << 29, None),
            Shaper::new(125_000_000_000_000, 4 << 30, None),
        ];
        for direction in Direction::BOTH {
            let key = shaper("a0", direction);
            for shaper in shapers {
                for _ in 0..2 {
                    all_fine(bench, &[Op::PutShaper(key.clone(), shaper)]).await;
                    assert_eq!(observe(bench).await.shapers.get(&key), Some(&Some(shaper)));
                }
                wait(&mut events, &KernelEvent::Shaper(key.clone(), Some(shaper))).await;
            }
        }
        let both = Direction::BOTH.map(|direction| shaper("a0", direction));
        assert_eq!(observe(bench).await.shapers.len(), 2);
        for key in &both {
            for _ in 0..2 {
                all_fine(bench, &[Op::RemoveShaper(key.clone())]).await;
                assert!(!observe(bench).await.shapers.contains_key(key));
            }
        }
        wait(&mut events, &KernelEvent::Shaper(both[0].clone(), None)).await;
        let detour = ShaperKey::detour(&"a0".into());
        wait(&mut events, &KernelEvent::LinkGone(detour.clone())).await;
        assert!(!observe(bench).await.links.contains_key(&detour));
        // Somebody else's device of that name.
        bench.add_device(&detour);
        let results = apply(bench, &[Op::PutShaper(both[1].clone(), shapers[0])]).await;
        assert!(matches!(results[..], [Err(KernelError::Foreign { .. })]), "{results:?}");
        all_fine(bench, &[Op::RemoveShaper(both[1].clone())]).await;
        assert!(observe(bench).await.links.contains_key(&detour));
    })
}

/// The queue of a device that goes is gone; the detour of what it received is still there, and can be removed or used again.
pub fn a_shaper_goes_with_its_device_and_its_detour_stays(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        prepare(bench).await;
        let both = Direction::BOTH.map(|direction| shaper("a0", direction));
        let wanted = Shaper::new(1_000_000, 50_000, None);
        let puts = both.clone().map(|key| Op::PutShaper(key, wanted));
        let results = apply(bench, &[Op::PutShaper(shaper("a9", Direction::Egress), wanted)]).await;
        assert_eq!(results, [Err(KernelError::NoDevice("a9".into()))]);
        for _ in 0..2 {
            all_fine(bench, &puts).await;
            bench.remove_device(&"a0".into());
            let seen = observe(bench).await.shapers;
            assert_eq!(seen.into_iter().collect::<Vec<_>>(), [(both[1].clone(), None)]);
            bench.add_device(&"a0".into());
        }
        all_fine(bench, &puts).await;
        let seen = observe(bench).await.shapers;
        assert!(
            seen.len() == 2 && seen.values().all(|shaper| *shaper == Some(wanted)),
            "{seen:?}"
        );
        // The detour behind the agent's back.
        let mut events = events(bench);
        let detour = ShaperKey::detour(&"a0".into());
        bench.remove_device(&detour);
        wait(&mut events, &KernelEvent::LinkGone(detour)).await;
        assert!(!observe(bench).await.shapers.contains_key(&both[1]));
        all_fine(bench, &puts).await;
        assert_eq!(observe(bench).await.shapers.get(&both[1]), Some(&Some(wanted)));
    })
}

fn shaper(device: &str, direction: Direction) -> ShaperKey {
    ShaperKey {
        device: device.into(),
        direction,
    }
}
