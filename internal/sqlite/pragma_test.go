package sqlite

import (
	"os"
	"regexp"
	"testing"
)

// docs/sql.md and the table Pragmas have all PRAGMAs that the engine knows, and say the
// same about them.
func TestManualHasEveryPragma(t *testing.T) {
	text, err := os.ReadFile("../../docs/sql.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| ([a-z]+) \\|").FindAllStringSubmatch(string(text), -1) {
		documented[row[1]] = row[2]
	}
	_, reader := openPair(t)
	names, err := reader.TextsAsOwner("SELECT name FROM pragma_pragma_list")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, name := range names {
		known[name] = true
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
		if want := words[pragma.Kind]; documented[name] != want {
			t.Errorf("according to docs/sql.md %s is %q, but it is %q", name, documented[name], want)
		}
		delete(documented, name)
	}
	for name := range documented {
		t.Errorf("docs/sql.md has the unknown PRAGMA %s", name)
	}
}
