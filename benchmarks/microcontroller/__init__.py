"""C for microcontrollers, built with a cross compiler and run on an emulated board: instructions, flash, RAM, answers."""
