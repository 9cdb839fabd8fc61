# cmake -DSOURCE=DIR -DOUT=FILE -P write_commit.cmake: writes FILE if the commit has changed.
set(commit "unknown")
find_program(GIT git)
if(GIT AND EXISTS "${SOURCE}/.git")
  execute_process(COMMAND "${GIT}" -C "${SOURCE}" describe --always --dirty --abbrev=12 --exclude=*
                  OUTPUT_VARIABLE described RESULT_VARIABLE status ERROR_QUIET
                  OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(status EQUAL 0)
    set(commit "${described}")
  endif()
endif()
file(CONFIGURE OUTPUT "${OUT}" CONTENT
"extern \"C\" {
extern const char subspace_commit_text[];
const char subspace_commit_text[] = \"${commit}\";
}
")
