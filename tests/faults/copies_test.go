package faults

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite/internal/testrun"
	"github.com/hiqlite/hiqlite/tests/process"
)

// copyLive copies a folder that is in use, file by file, as a careless backup does. Files
// may be removed meanwhile.
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

// The folders of running nodes are copied, one after the other, and put back later. Each
// node either reports that its files do not belong together, or takes part in the cluster.
// All nodes that take part have the same rows, with every row that was acknowledged since.
func TestCopiesOfLiveFoldersPutBack(t *testing.T) {
	for round := range testrun.Rounds(4, 8) {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			t.Parallel()
			nodes := process.NewNodes(t, 3, 2)
			nodes[0].Ask("table")
			for _, n := range nodes {
				n.Ask("write")
			}
			nodes[0].WaitForWrites(20)
			copies := t.TempDir()
			folder := func(n *process.Node) string { return filepath.Join(copies, fmt.Sprint(n.Config.NodeID)) }
			for _, n := range nodes {
				copyLive(t, n.Config.DataDir, folder(n))
				n.WaitForWrites(10)
			}
			for _, n := range nodes {
				n.Kill()
			}
			for _, n := range nodes {
				if err := os.RemoveAll(n.Config.DataDir); err != nil {
					t.Fatal(err)
				}
				if err := os.Rename(folder(n), n.Config.DataDir); err != nil {
					t.Fatal(err)
				}
				n.ForgetAcks() // writes that were acknowledged before may be lost
				n.Start()
			}
			whole := undamaged(t, nodes)
			if len(whole) >= 2 {
				for _, n := range whole {
					n.Try("write")
				}
				deadline := time.Now().Add(15 * time.Second)
				for acknowledged := int64(0); acknowledged < 200 && len(whole) >= 2 && time.Now().Before(deadline); {
					acknowledged = 0
					whole = undamaged(t, whole)
					for _, n := range whole {
						if r, err := n.Try("status"); err == nil {
							acknowledged += r.Acked[0]
						}
					}
					time.Sleep(20 * time.Millisecond) // while the writers work
				}
				whole = equalOrDamaged(t, whole)
			}
			t.Logf("%d nodes take part", len(whole))
			for _, n := range nodes {
				n.Kill()
				if log := n.Log(); strings.Contains(log, "panic:") || strings.Contains(log, "goroutine ") {
					t.Errorf("node %d panicked: %s", n.Config.NodeID, log)
				}
			}
		})
	}
}

// undamaged returns the nodes that run and do not say that they are damaged.
func undamaged(t testing.TB, nodes []*process.Node) (whole []*process.Node) {
	t.Helper()
	for _, n := range nodes {
		r, err := n.Try("status")
		if err != nil {
			if !strings.Contains(n.Log(), "damaged") {
				t.Errorf("node %d ended without saying that it is damaged: %s", n.Config.NodeID, n.Log())
			}
			continue
		}
		if !strings.Contains(strings.Join(r.Errors, "\n"), "damaged") {
			whole = append(whole, n)
		}
	}
	return whole
}

// equalOrDamaged waits until the undamaged nodes have the same rows, with all that were
// acknowledged, or until they are no majority any more. It returns the undamaged nodes.
func equalOrDamaged(t testing.TB, whole []*process.Node) []*process.Node {
	t.Helper()
	testrun.WaitFor(t, "nodes that have the same rows, or are damaged", func() bool {
		if whole = undamaged(t, whole); len(whole) < 2 {
			return true
		}
		for _, n := range whole {
			n.Try("stop")
		}
		hashes, missing := map[string]bool{}, int64(0)
		for _, n := range whole {
			r, err := n.Try("hash")
			m, err2 := n.Try("missing")
			if err != nil || err2 != nil {
				return false
			}
			hashes[r.Hash] = true
			missing += m.Count
		}
		return len(hashes) == 1 && missing == 0
	})
	return whole
}
