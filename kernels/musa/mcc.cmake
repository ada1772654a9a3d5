# Runs one command of mcc's (COMMAND) for one file (WHAT); where it fails, the last line says what
# can be done. What mcc itself has to say comes before.
execute_process(COMMAND ${COMMAND} RESULT_VARIABLE failed)
if(NOT failed EQUAL 0)
  message(FATAL_ERROR "MUSA kernels: mcc failed on ${WHAT} (${failed}): "
                      "MTACTORS_MUSA_ARCHS=none installs without them")
endif()
