"""What runs inside model servers, not in the operator: each module is one file that needs nothing of ours."""
