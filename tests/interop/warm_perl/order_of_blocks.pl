#!/usr/bin/perl
BEGIN { push @order, "begin1" }
INIT { push @order, "init1" }
CHECK { push @order, "check1" }
UNITCHECK { push @order, "unitcheck" }
INIT { push @order, "init2" }
CHECK { push @order, "check2" }
BEGIN { push @order, "begin2" }
END { print "end1\n" }
END { print "end2 ${^GLOBAL_PHASE}\n" }
print "@order\n";
