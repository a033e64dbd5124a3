// In place of the header of Gloo with this name: see declarations.h.
#include "declarations.h"
