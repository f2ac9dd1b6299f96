//go:build ignore

// This program generates the Go code of the API from its schema. Run it by
//
//	go generate ./api
//
// It compiles the schema itself, so protoc is not needed. The plugins are tools of
// the module.
package main

import (
	"bytes"
	"context"
	"log"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

const schema = "hiqlite/v1/hiqlite.proto"

func main() {
	compiler := protocompile.Compiler{
		Resolver:       &protocompile.SourceResolver{ImportPaths: []string{"."}},
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	files, err := compiler.Compile(context.Background(), schema)
	if err != nil {
		log.Fatal(err)
	}
	request, err := proto.Marshal(&pluginpb.CodeGeneratorRequest{
		FileToGenerate: []string{schema},
		Parameter:      proto.String("paths=source_relative"),
		ProtoFile:      []*descriptorpb.FileDescriptorProto{protodesc.ToFileDescriptorProto(files[0])},
	})
	if err != nil {
		log.Fatal(err)
	}
	for _, plugin := range []string{"protoc-gen-go", "protoc-gen-connect-go"} {
		cmd := exec.Command("go", "tool", plugin)
		cmd.Stdin, cmd.Stderr = bytes.NewReader(request), os.Stderr
		answer, err := cmd.Output()
		if err != nil {
			log.Fatalf("%s: %v", plugin, err)
		}
		var response pluginpb.CodeGeneratorResponse
		if err := proto.Unmarshal(answer, &response); err != nil {
			log.Fatal(err)
		}
		if response.Error != nil {
			log.Fatalf("%s: %s", plugin, *response.Error)
		}
		for _, f := range response.File {
			if err := os.MkdirAll(filepath.Dir(*f.Name), 0o755); err != nil {
				log.Fatal(err)
			}
			if err := os.WriteFile(*f.Name, []byte(*f.Content), 0o644); err != nil {
				log.Fatal(err)
			}
		}
	}
}
