package statemachine

import (
	"slices"
	"testing"

	"github.com/hiqlite/hiqlite/internal/wire"
)

// The verdicts of the table at Sessions.
func TestVerdicts(t *testing.T) {
	type entry struct {
		sequence, oldest uint64
		want             Verdict
	}
	for name, entries := range map[string][]entry{
		"one at a time":                    {{1, 0, Apply}, {1, 0, Repeat}, {2, 0, Apply}, {1, 0, Stale}, {2, 0, Repeat}, {0, 0, Stale}},
		"given up entries are missing":     {{3, 0, Apply}, {2, 0, Stale}, {7, 0, Apply}, {3, 0, Stale}},
		"several in flight":                {{1, 0, Apply}, {2, 1, Apply}, {3, 1, Apply}, {2, 1, Repeat}, {1, 0, Repeat}, {3, 1, Repeat}},
		"the first of several is lost":     {{2, 1, Early}, {3, 1, Early}, {1, 0, Apply}, {2, 1, Apply}, {3, 1, Apply}, {1, 0, Repeat}},
		"one in the middle is lost":        {{1, 0, Apply}, {3, 1, Early}, {2, 1, Apply}, {3, 1, Apply}, {4, 2, Apply}, {1, 0, Stale}},
		"a later one says what it needs":   {{1, 0, Apply}, {2, 1, Apply}, {3, 2, Apply}, {1, 0, Stale}, {2, 1, Repeat}, {4, 4, Apply}, {3, 2, Stale}},
		"all in flight are given up":       {{1, 0, Apply}, {3, 1, Early}, {5, 0, Apply}, {2, 1, Stale}, {3, 1, Stale}, {1, 0, Stale}},
		"a copy of a late one is no copy":  {{1, 0, Apply}, {3, 1, Early}, {3, 1, Early}, {2, 1, Apply}, {3, 1, Apply}, {3, 1, Repeat}},
		"an entry that names a later one":  {{1, 0, Apply}, {2, 9, Apply}, {1, 0, Stale}},
		"the first entry of a new session": {{2, 2, Early}, {1, 1, Apply}},
	} {
		var s Sessions[uint64]
		s.Load([]wire.Session[uint64]{{ID: 7}})
		for i, e := range entries {
			session, got := s.Admit(7, e.sequence, e.oldest, 0)
			if got != e.want {
				t.Errorf("%s: the verdict on entry %d, %d of %d, is %d, want %d", name, i, e.sequence, e.oldest, got, e.want)
			}
			switch got {
			case Apply:
				session.Results = []uint64{e.sequence}
			case Repeat:
				if r := session.ResultsOf(e.sequence); !slices.Equal(r, []uint64{e.sequence}) {
					t.Errorf("%s: the kept results of entry %d are %v", name, e.sequence, r)
				}
			}
		}
	}
}

// The results that a session keeps are bounded, whatever its proposer sends.
func TestKeptEntriesAreBounded(t *testing.T) {
	var s Sessions[uint64]
	s.Load([]wire.Session[uint64]{{ID: 7}})
	for n := uint64(1); n <= 1000; n++ {
		session, verdict := s.Admit(7, n, 1, 0)
		if verdict != Apply || len(session.Earlier) > maxEarlier {
			t.Fatalf("entry %d: the verdict is %d, and the results of %d entries are kept", n, verdict, len(session.Earlier))
		}
	}
}
