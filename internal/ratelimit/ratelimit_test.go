package ratelimit

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

func TestEachClientHasItsOwnLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Limits{SQL: Limit{PerSecond: 10, Burst: 20}})
		for i := range 20 {
			if _, ok := l.Allow("a", SQL, 1); !ok {
				t.Fatalf("request %d of a burst of 20 was refused", i+1)
			}
		}
		retry, ok := l.Allow("a", SQL, 1)
		if ok || retry <= 0 || retry > 100*time.Millisecond {
			t.Errorf("after the burst: allowed %v, retry after %v, want a tenth of a second", ok, retry)
		}
		if _, ok := l.Allow("b", SQL, 1); !ok {
			t.Error("another client was refused")
		}
		if _, ok := l.Allow("a", Cache, 1000); !ok {
			t.Error("a kind without a limit was refused")
		}
		time.Sleep(retry) // in the bubble's time
		if _, ok := l.Allow("a", SQL, 1); !ok {
			t.Error("refused after the time that it was told to wait")
		}
		if _, ok := l.Allow("a", SQL, 1); ok {
			t.Error("refused requests were counted as a right to send more")
		}
	})
}

func TestALargeRequestCountsAsABurst(t *testing.T) {
	l := New(Limits{SQL: Limit{PerSecond: 10}})
	if _, ok := l.Allow("a", SQL, 1000); !ok {
		t.Error("a batch that is larger than a burst can never be sent")
	}
	if _, ok := l.Allow("a", SQL, 1); ok {
		t.Error("the large batch was not counted")
	}
}

func TestTheNumberOfClientsIsBounded(t *testing.T) {
	l := New(Limits{SQL: Limit{PerSecond: 1}})
	l.most = 3
	for i := range 10 {
		l.Allow(fmt.Sprint(i), SQL, 1)
		l.Allow("busy", SQL, 1)
	}
	if len(l.clients) != 3 || l.recent.Len() != 3 {
		t.Errorf("remembers %d clients, in a list of %d, want 3", len(l.clients), l.recent.Len())
	}
	if _, ok := l.Allow("busy", SQL, 1); ok {
		t.Error("a client that sends all the time was forgotten")
	}
}

func TestNoLimits(t *testing.T) {
	if _, ok := New(Limits{}).Allow("a", SQL, 1<<30); !ok {
		t.Error("refused without a limit")
	}
}
