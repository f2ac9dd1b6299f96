package hiqlite_test

import (
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite/internal/testrun"
)

// copyLive copies a folder that is in use, file by file, as a careless backup
// does. Files may vanish meanwhile.
func copyLive(t testing.TB, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if os.IsNotExist(err) {
				return nil
			}
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		in, err := os.Open(path)
		if os.IsNotExist(err) {
			return nil
		} else if err != nil {
			return err
		}
		defer in.Close()
		out, err := os.Create(filepath.Join(to, rel))
		if err != nil {
			return err
		}
		_, err = io.Copy(out, in)
		if cerr := out.Close(); err == nil {
			err = cerr
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The folders of running nodes are copied, one after the other, and put back.
// Each node says that its files do not belong together, or all that take part
// hold the same, with every row that was acknowledged since.
func TestCopiesOfLiveFoldersPutBack(t *testing.T) {
	const writers, rounds = 2, 4
	for round := range rounds {
		all := processes(t, 3, writers)
		all[0].ask("table")
		for _, p := range all {
			p.ask("write")
		}
		progress := func(p *process, rows int64) {
			before := p.ask("status").Acked[0]
			testrun.WaitFor(t, "writers to go on", func() bool { return p.ask("status").Acked[0] >= before+rows })
		}
		progress(all[0], 20)
		dir := t.TempDir()
		for i, p := range all {
			copyLive(t, p.cfg.DataDir, filepath.Join(dir, string(rune('1'+i))))
			progress(p, 10)
		}
		for _, p := range all {
			p.kill()
		}
		for i, p := range all {
			if err := os.RemoveAll(p.cfg.DataDir); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(filepath.Join(dir, string(rune('1'+i))), p.cfg.DataDir); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(p.acks); err != nil { // what was acknowledged before is not promised
				t.Fatal(err)
			}
			p.start(writers)
		}
		whole := takingPart(t, all)
		if len(whole) >= 2 {
			for _, p := range whole {
				p.try("write")
			}
			deadline := time.Now().Add(15 * time.Second)
			for acknowledged := int64(0); acknowledged < 200 && len(whole) >= 2 && time.Now().Before(deadline); {
				acknowledged = 0
				whole = takingPart(t, whole)
				for _, p := range whole {
					if r, err := p.try("status"); err == nil {
						acknowledged += r.Acked[0]
					}
				}
				time.Sleep(20 * time.Millisecond) // between looks
			}
			whole = settled(t, whole)
		}
		t.Logf("round %d: %d nodes take part", round, len(whole))
		for _, p := range all {
			p.kill()
			if strings.Contains(p.said.String(), "panic:") || strings.Contains(p.said.String(), "goroutine ") {
				t.Errorf("round %d: node %d panicked", round, p.cfg.NodeID)
			}
		}
	}
}

// takingPart returns the processes that run and do not say that they are damaged.
func takingPart(t testing.TB, all []*process) (whole []*process) {
	t.Helper()
	for _, p := range all {
		r, err := p.try("status")
		damaged := err != nil
		for _, e := range r.Errors {
			damaged = damaged || strings.Contains(e, "damaged")
		}
		if !damaged {
			whole = append(whole, p)
		} else if err != nil {
			p.cmd.Wait()
			p.killed = true
			if said := p.said.String(); !strings.Contains(said, "damaged") {
				t.Errorf("node %d ended without saying that it is damaged: %s", p.cfg.NodeID, said)
			}
		}
	}
	return whole
}

// settled waits until the processes that take part hold the same, with all that
// was acknowledged, unless no majority takes part any more.
func settled(t testing.TB, whole []*process) []*process {
	t.Helper()
	testrun.WaitFor(t, "nodes that are alike, or refuse", func() bool {
		if whole = takingPart(t, whole); len(whole) < 2 {
			return true
		}
		for _, p := range whole {
			p.try("stop")
		}
		hashes := map[string]bool{}
		lost := int64(0)
		for _, p := range whole {
			r, err := p.try("hash")
			m, err2 := p.try("missing")
			if err != nil || err2 != nil {
				return false
			}
			hashes[r.Hash] = true
			lost += m.Count
		}
		return len(hashes) == 1 && lost == 0
	})
	return whole
}
