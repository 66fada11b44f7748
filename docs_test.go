// SPDX-License-Identifier: MIT

package holdfast_test

import (
	"os"
	"strings"
	"testing"
)

// TestReadmesExample: what is shown first of all is what compiles.
func TestReadmesExample(t *testing.T) {
	code, err := os.ReadFile("example_memory_linux_test.go")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, example, found := strings.Cut(string(code), "\n// keptMemory is")
	if example = strings.ReplaceAll("// keptMemory is"+example, "keptMemory", "memory"); !found || !strings.Contains(string(text), "```go\n"+example+"```\n") {
		t.Errorf("README.md hasn't this:\n```go\n%s```", example)
	}
}

// TestExampleIsInTheDocuments: what is shown to authors is what compiles.
func TestExampleIsInTheDocuments(t *testing.T) {
	code, err := os.ReadFile("example_participant_linux_test.go")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("docs/client-author.md")
	if err != nil {
		t.Fatal(err)
	}
	_, example, found := strings.Cut(string(code), "\n// cache keeps")
	if example = "// cache keeps" + strings.Replace(example, "func ExampleJoin()", "func main()", 1); !found || !strings.Contains(string(text), "```go\n"+example+"```\n") {
		t.Errorf("docs/client-author.md hasn't this:\n```go\n%s```", example)
	}
}
