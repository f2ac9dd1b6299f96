package sqlite

import (
	"os"
	"regexp"
	"testing"
)

// docs/sql.md says of every PRAGMA that the engine knows what becomes of it, and
// of those that only this package knows.
func TestTheManualHasEveryPragma(t *testing.T) {
	text, err := os.ReadFile("../../docs/sql.md")
	if err != nil {
		t.Fatal(err)
	}
	said := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| ([a-z]+) \\|").FindAllStringSubmatch(string(text), -1) {
		said[row[1]] = row[2]
	}
	_, reader := openPair(t)
	known := map[string]bool{}
	s, _, err := reader.Prepare("SELECT name FROM pragma_pragma_list", false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for {
		row, err := s.Step()
		if err != nil {
			t.Fatal(err)
		}
		if !row {
			break
		}
		known[string(s.Bytes(0))] = true
	}
	if len(known) < 60 {
		t.Fatalf("the engine knows %d PRAGMAs", len(known))
	}
	for name := range Pragmas {
		known[name] = true
	}
	words := map[PragmaKind]string{PragmaAnswered: "answered", PragmaReplicated: "replicated", PragmaSetting: "setting", PragmaTransaction: "setting", PragmaIgnored: "ignored", PragmaRefused: "refused"}
	for name := range known {
		pragma, ok := Pragmas[name]
		if !ok {
			t.Errorf("the table Pragmas does not have %s", name)
		}
		if want := words[pragma.Kind]; said[name] != want {
			t.Errorf("docs/sql.md says of %s that it is %q: it is %q", name, said[name], want)
		}
		delete(said, name)
	}
	for name := range said {
		t.Errorf("docs/sql.md has %s, which nobody knows", name)
	}
}
