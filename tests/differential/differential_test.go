package differential

import (
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/tests/process"
)

var (
	seedFlag     = flag.Uint64("seed", 1, "of the first round; 0: any")
	durationFlag = flag.Duration("duration", testrun.Length(4*time.Second, 15*time.Second), "how long each test goes on")
	roundsFlag   = flag.Int("rounds", 0, "how many rounds each test goes on; 0: as -duration says")
	failuresFlag = flag.Int("failures", 1, "after which to stop")
	stepsFlag    = flag.Int("steps", 150, "of a round")
)

// discardLogs discards the lines that nodes log.
var discardLogs = slog.New(slog.NewTextHandler(io.Discard, nil))

func TestMain(m *testing.M) {
	process.Serve(openClients)
	goleak.VerifyTestMain(m)
}

// seeds calls round with one seed after the other, as long as the flags allow.
func seeds(t *testing.T, round func(seed uint64)) {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64() >> 16
	}
	ended := false
	defer func() { // round may end the test
		if !ended {
			t.Logf("seed %d ended the test: once more with -run %s -seed %d -rounds 1", seed, t.Name(), seed)
		}
	}()
	began := time.Now()
	for n := 0; ; n++ {
		if *roundsFlag > 0 && n >= *roundsFlag || *roundsFlag == 0 && time.Since(began) > *durationFlag {
			t.Logf("%d rounds, the next one's seed is %d", n, seed)
			ended = true
			return
		}
		round(seed)
		seed++
	}
}

// Random statements give the same results on modernc.org/sqlite and on clusters of one
// node and of three.
func TestDifferential(t *testing.T) {
	r := newRunner(t)
	statements, failures, began := 0, 0, time.Now()
	seeds(t, func(seed uint64) {
		found := r.round(seed)
		statements += len(r.done)
		if found != nil {
			t.Errorf("%s", r.report(seed, found))
			if failures++; failures == *failuresFlag {
				t.FailNow()
			}
		}
	})
	t.Logf("%d statements, %d of them succeeded, %.0f a second", statements, r.succeeded, float64(statements)/time.Since(began).Seconds())
}

// round writes a script and runs it at the same time, because each step depends on the
// schema that the steps before it have left.
func (r *runner) round(seed uint64) *difference {
	w := newWriter(seed)
	r.begin()
	for range *stepsFlag {
		s := w.next(r)
		found := r.step(s)
		if found != nil {
			return found
		}
		if r.worked {
			r.succeeded++
		}
	}
	for i := range r.open {
		if r.open[i] {
			if found := r.step(step{conn: i, how: exec, text: "ROLLBACK"}); found != nil {
				return found
			}
		}
	}
	return r.step(step{how: compareAll})
}

// report shortens the script that failed and returns it with the difference.
func (r *runner) report(seed uint64, found *difference) string {
	whole := r.done
	short, last := r.shrink(whole, found)
	return fmt.Sprintf("seed %d: once more with -run TestDifferential -seed %d -rounds 1\n%s\n--- %d of %d steps are enough:\n%s--- found at:\n%s", seed, seed, last, len(short), len(whole), short, found)
}
