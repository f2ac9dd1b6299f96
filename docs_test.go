package hiqlite_test

import (
	"go/scanner"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestDocumentsNameWhatExists checks the names in the documents for contributors.
// Each Go file that a document names has to exist. Each name in backquotes in
// ARCHITECTURE.md has to be a word of the code, and each package has to be named
// there.
func TestDocumentsNameWhatExists(t *testing.T) {
	files, folders, words := source(t)
	for _, name := range []string{"README.md", "CONTRIBUTING.md", "docs/ARCHITECTURE.md", "docs/DECISIONS.md", "docs/VERSIONING.md", "docs/cli.md", "docs/configuration.md", "docs/sql.md", "tests/README.md"} {
		text := readDocument(t, name)
		for _, file := range regexp.MustCompile(`([\w./-]+\.go)(?:[^.\w]|\.\s|$)`).FindAllStringSubmatch(text, -1) {
			if !files[strings.TrimPrefix(file[1], "../")] {
				t.Errorf("%s names the file %s, which does not exist", name, file[1])
			}
		}
	}

	guide := readDocument(t, "docs/ARCHITECTURE.md")
	for _, quoted := range regexp.MustCompile("`([A-Za-z_][\\w.]*)`").FindAllStringSubmatch(guide, -1) {
		name := quoted[1]
		if files[name] || folders[name] || words[name] {
			continue
		}
		for part := range strings.SplitSeq(name, ".") {
			if !words[part] {
				t.Errorf("docs/ARCHITECTURE.md names `%s`: there is no %s in the code", name, part)
			}
		}
	}
	for _, rule := range mayImport {
		name := strings.ReplaceAll(rule.packages, "/*", "")
		if name != "." && !regexp.MustCompile(`(?m)(^|[ `+"`"+`])`+regexp.QuoteMeta(name)+"([ /`]|$)").MatchString(guide) {
			t.Errorf("docs/ARCHITECTURE.md does not say what the package %s is", name)
		}
	}
}

func readDocument(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// source returns the files and folders of the project, by their paths and by each
// suffix of these; and the words of its Go code: identifiers, and words in literals.
func source(t *testing.T) (files, folders, words map[string]bool) {
	t.Helper()
	files, folders, words = map[string]bool{}, map[string]bool{}, map[string]bool{}
	word := regexp.MustCompile(`\w+`)
	err := filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && strings.HasPrefix(d.Name(), ".") && file != "." && d.Name() != ".ci" {
			return filepath.SkipDir
		}
		named := files
		if d.IsDir() {
			named = folders
		}
		for end, more := filepath.ToSlash(file), true; more; _, end, more = strings.Cut(end, "/") {
			named[end] = true
		}
		if d.IsDir() || !strings.HasSuffix(file, ".go") {
			return nil
		}
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		var s scanner.Scanner
		s.Init(token.NewFileSet().AddFile(file, -1, len(b)), b, nil, 0) // without comments
		for {
			_, tok, lit := s.Scan()
			if tok == token.EOF {
				return nil
			}
			for _, w := range word.FindAllString(lit, -1) {
				words[w] = true
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return files, folders, words
}
