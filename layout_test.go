package hiqlite_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const modulePath = "github.com/hiqlite/hiqlite"

// mayImport says, for each package of the project, which others its code may
// import (its tests may import all). Imports point downwards only: a package
// knows nothing of those that are listed before it. A new package gets a line.
//
// kv, lock and pubsub stand between the commands and the root, of which they need
// the Client interface; they do not know each other. So will backup and heal.
var mayImport = []struct {
	packages string // a path.Match pattern
	imports  []string
}{
	{"cmd/*", []string{".", "driver", "kv", "lock", "pubsub", "internal/loopback"}},
	{"examples/*", []string{".", "driver", "kv", "lock", "pubsub"}}, // and what lies below itself
	{"examples/*/*", nil},
	{"benchmarks", nil},
	{"tests/*", []string{".", "driver"}},
	{"driver", []string{"."}},
	{"kv", []string{".", "internal/companion", "internal/wire"}},
	{"lock", []string{".", "internal/companion", "internal/wire"}},
	{"pubsub", []string{".", "internal/companion", "internal/wire"}},
	{"internal/testcluster", []string{".", "internal/loopback"}},
	{".", []string{"cluster", "statemachine", "internal/companion", "internal/durable", "internal/sqlite", "internal/wire"}},
	{"cluster", []string{"internal/durable"}}, // it moves bytes
	{"statemachine", []string{"internal/companion", "internal/durable", "internal/sqlite", "internal/table", "internal/wire"}},
	{"internal/companion", []string{"internal/wire"}},
	{"internal/sqlite", []string{"internal/wire"}},
	{"internal/durable", nil},
	{"internal/loopback", nil},
	{"internal/table", nil},
	{"internal/wire", nil},
}

// confined are dependencies, by the prefix of their path, that only some
// packages may import. What has its own line is not ruled by a shorter prefix.
var confined = []struct {
	prefix   string
	packages []string
	tests    bool // all tests may import it, too
}{
	{"modernc.org/sqlite/lib", []string{"internal/sqlite"}, false},
	{"modernc.org/libc", []string{"internal/sqlite"}, false},
	{"modernc.org/sqlite", nil, true}, // registers a driver that would clash in users' programs
	{"github.com/lni/dragonboat/v4/statemachine", []string{"cluster", "statemachine", "."}, true},
	{"github.com/lni/dragonboat", []string{"cluster"}, false},
}

// TestImportDirections keeps the layers apart, whatever the build tags.
func TestImportDirections(t *testing.T) {
	found := map[string]bool{}
	err := filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := d.Name(); d.IsDir() && file != "." && (name == "testdata" || strings.ContainsAny(name[:1], "._")) {
			return filepath.SkipDir
		}
		if _, err := os.Stat(filepath.Join(file, "go.mod")); d.IsDir() && file != "." && err == nil {
			return filepath.SkipDir // a module of its own
		}
		if d.IsDir() || !strings.HasSuffix(file, ".go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		from := filepath.ToSlash(filepath.Dir(file))
		found[from] = true
		for _, spec := range f.Imports {
			to, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if why := forbidden(from, to, strings.HasSuffix(file, "_test.go")); why != "" {
				t.Errorf("%s imports %s: %s", file, to, why)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) < len(mayImport) {
		t.Errorf("found the packages %v only", found)
	}
}

// forbidden says why a package may not import another, or nothing.
func forbidden(from, to string, test bool) string {
	if to == modulePath || strings.HasPrefix(to, modulePath+"/") {
		to = path.Clean("./" + strings.TrimPrefix(to, modulePath))
		for _, rule := range mayImport {
			if ok, _ := path.Match(rule.packages, from); ok {
				if test || slices.Contains(rule.imports, to) || strings.HasPrefix(from, "examples/") && strings.HasPrefix(to, from+"/") {
					return ""
				}
				return "imports point downwards only, see mayImport"
			}
		}
		return "the package has no line in mayImport yet"
	}
	for _, rule := range confined {
		if to == rule.prefix || strings.HasPrefix(to, rule.prefix+"/") {
			if slices.Contains(rule.packages, from) || test && rule.tests {
				return ""
			}
			return "only " + strings.Join(rule.packages, ", ") + " may, see confined"
		}
	}
	return ""
}

// The rules themselves: what each exists for is refused.
func TestForbidden(t *testing.T) {
	for _, c := range []struct {
		from, to string
		test     bool
		ok       bool
	}{
		{"driver", modulePath, false, true},
		{".", modulePath + "/driver", false, false},
		{".", modulePath + "/driver", true, true},
		{"cluster", modulePath + "/statemachine", false, false},
		{"cluster", modulePath, false, false},
		{"statemachine", modulePath + "/cluster", false, false},
		{"internal/wire", modulePath + "/internal/sqlite", false, false},
		{"newcomer", modulePath, false, false},
		{"internal/sqlite", "modernc.org/sqlite/lib", false, true},
		{"statemachine", "modernc.org/sqlite/lib", false, false},
		{"statemachine", "modernc.org/sqlite/lib", true, false},
		{".", "modernc.org/sqlite", false, false},
		{"internal/sqlite", "modernc.org/sqlite", false, false},
		{"benchmarks", "modernc.org/sqlite", true, true},
		{"cluster", "github.com/lni/dragonboat/v4", false, true},
		{".", "github.com/lni/dragonboat/v4", false, false},
		{"statemachine", "github.com/lni/dragonboat/v4/config", false, false},
		{"statemachine", "github.com/lni/dragonboat/v4/statemachine", false, true},
		{".", "github.com/lni/dragonboatlike", false, true},
	} {
		if why := forbidden(c.from, c.to, c.test); (why == "") != c.ok {
			t.Errorf("%s imports %s (test: %v): %q", c.from, c.to, c.test, why)
		}
	}
}
